// Comforts. Every page works without them.
"use strict";

// Times in the browser's own zone; UTC stays in the title.
function local(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (isNaN(at) || time.dataset.local) continue;
    const two = (number) => String(number).padStart(2, "0");
    const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
    time.textContent = `${day} ${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
    time.dataset.local = "1";
  }
}
local(document);
document.addEventListener("htmx:afterSwap", (event) => local(event.target.parentNode || document));

// "/" goes to the search; j and k from row to row; Enter opens the row's link.
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
  if (event.key === "/") {
    const find = document.getElementById("find");
    if (find) { find.focus(); event.preventDefault(); }
  } else if (event.key === "j" || event.key === "k") {
    const links = [...document.querySelectorAll("tbody tr")].map((row) => row.querySelector("a")).filter(Boolean);
    const at = links.indexOf(document.activeElement);
    const next = links[event.key === "j" ? at + 1 : Math.max(at - 1, 0)];
    if (next) next.focus();
  }
});
