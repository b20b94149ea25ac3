// As workers.py, a table of strings in Node.js.
const table = new Map();
for (let number = 0; number < 100000; number++)
  table.set(number, JSON.stringify({ id: number, name: `item ${number}` }));
console.log("ready");
require("readline").createInterface({ input: process.stdin }).on("line", (line) => {
  for (let request = 0; request < Number(line); request++)
    JSON.parse(table.get(Math.floor(Math.random() * table.size)));
  console.log("served");
});
