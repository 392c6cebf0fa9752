"""Which axis of a study is x in its pictures, and which is a panel."""

from study_samples import make_study, read_answer

from moge_bench.publish.design import design

WITH_EXPERTS = """
name: golden
question: Which number of experts, with its lambda?
base: {preset: tiny-vit, seeds: [0]}
axes:
  method: [moe, moge]
  moe.num_experts: [4, 9, 16]
  moe.group.weight: [1.0, 4.0, 16.0]
table: {rows: [moe.num_experts, moe.group.weight], columns: method, metrics: [top1_accuracy]}
skip:
"""


def test_an_axis_whose_value_x_decides_is_no_panel(tmp_path):
    own = {4: 1.0, 9: 4.0, 16: 16.0}

    def plan(kept, folder):
        skipped = [
            f"  - {{moe.num_experts: {n}, moe.group.weight: {weight}}}\n"
            for n in own for weight in own.values() if not kept(n, weight)
        ]  # fmt: skip
        folder.mkdir()
        make_study(folder, WITH_EXPERTS + "".join(skipped), speed=False)
        return design(read_answer(folder).results)

    decided = plan(lambda n, weight: weight == own[n], tmp_path / "decided")
    assert decided.x == "moe.num_experts"
    assert [panel.title for panel in decided.panels] == [""]
    assert len(decided.panels[0].places) == 6
    # 16 experts at two weights: then the weight is not theirs alone
    free = plan(lambda n, weight: weight in (own[n], 4.0), tmp_path / "free")
    assert [panel.title for panel in free.panels] == ["lambda 1.0", "lambda 4.0", "lambda 16.0"]
