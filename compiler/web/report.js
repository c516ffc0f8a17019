"use strict";
// A click on a heading sorts its table by that column: numbers by data-v, else text; again: the other way round.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const th = button.closest("th"), table = th.closest("table"), body = table.tBodies[0];
    const column = [...th.parentNode.children].indexOf(th);
    const up = th.getAttribute("aria-sort") === (th.classList.contains("n") ? "descending" : "ascending");
    const sign = th.classList.contains("n") === up ? 1 : -1;
    const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const number = th.classList.contains("n");
    const rows = [...body.rows].sort((a, b) =>
      sign * (number ? key(a) - key(b) : key(a).localeCompare(key(b), "en", { numeric: true })));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    body.append(...rows);
  });
}
document.getElementById("save").addEventListener("click", () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([document.getElementById("report").textContent], { type: "application/json" }));
  link.download = "report.json";
  link.click();
  URL.revokeObjectURL(link.href);
});
