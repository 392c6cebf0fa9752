"use strict";
(() => {
  const root = document.documentElement;
  const kept = (work) => { try { return work(); } catch { return null; } }; // a file may have no storage
  const saved = kept(() => localStorage.getItem("theme"));
  if (saved === "dark" || saved === "light") root.dataset.theme = saved;
  document.getElementById("theme").addEventListener("click", () => {
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
    kept(() => localStorage.setItem("theme", root.dataset.theme));
  });

  // Tables: a click on a head sorts by it, a second one the other way; cells without a value stay last.
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.sort;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return up ? compare(x, y) : compare(y, x);
      });
      table.tBodies[0].append(...rows);
    }));
  }

  // Numbers: their runs, as the lists of records below each study have them.
  const source = document.getElementById("source");
  let timer = 0;
  const hide = () => { source.hidden = true; };
  const later = () => { timer = setTimeout(hide, 250); };
  const show = (number) => {
    clearTimeout(timer);
    source.replaceChildren();
    for (const arm of number.dataset.arms.split(" ")) {
      const row = document.getElementById(`r-${number.dataset.study}-${arm}`);
      const line = document.createElement("p");
      line.append(...[...row.children].map((each) => each.cloneNode(true)));
      source.append(line);
    }
    source.hidden = false;
    const at = number.getBoundingClientRect();
    const left = Math.min(at.left, root.clientWidth - source.offsetWidth - 8);
    source.style.left = `${scrollX + Math.max(8, left)}px`;
    source.style.top = `${scrollY + at.bottom + 4}px`;
  };
  for (const number of document.querySelectorAll("a.n")) {
    number.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") show(number); });
    number.addEventListener("pointerleave", later);
    number.addEventListener("focus", () => show(number));
    number.addEventListener("click", (event) => { event.preventDefault(); show(number); });
  }
  source.addEventListener("pointerenter", () => clearTimeout(timer));
  source.addEventListener("pointerleave", later);
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#source, a.n")) hide();
  });
  // A link to an arm's records opens the list that it stands in.
  const open = () => { document.getElementById(location.hash.slice(1))?.closest("details")?.setAttribute("open", ""); };
  addEventListener("hashchange", open);
  open();
})();
