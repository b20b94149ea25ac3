const table = Float64Array.from({ length: 4 << 20 }, (_, n) => Math.sqrt(n));
console.log("ready");
setInterval(() => table.length, 1000);
