/* Keeps, relabels or drops pictures by the hash of their content, filters the cards, and makes corrections.csv. */
document.addEventListener("DOMContentLoaded", () => {
  const { key, classes, earlier } = JSON.parse(document.getElementById("mend-data").textContent);
  const decided = new Set(earlier.map((row) => row.hash));
  const groups = [...document.querySelectorAll(".mend")];
  const cards = [...document.querySelectorAll("figure")].filter((card) => card.querySelector(".mend"));
  const filters = [...document.querySelectorAll("[data-filter]")];
  const storage = `thaw-corrections-${key}`;
  let changes = new Map();
  try {
    changes = new Map(JSON.parse(localStorage.getItem(storage) ?? "[]"));
  } catch { /* without storage, choices last as long as the page */ }

  /* A second press takes a decision back; what was decided before stays without one. */
  function decide({ hash, path, label: was }, action, given = "") {
    const change = changes.get(hash);
    const label = action === "keep" ? was : given;
    const isAgain = change?.action === action && change.label === label;
    const isAsBefore = action === "keep" ? decided.has(hash) : label === was;
    if (isAgain || isAsBefore) changes.delete(hash);
    else changes.set(hash, { path, was, action, label });
    try {
      localStorage.setItem(storage, JSON.stringify([...changes]));
    } catch { /* as above */ }
    show();
  }

  /* All classes are listed in a select once it is used: a page may have many cards, and a set many classes. */
  function listClasses(select) {
    const listed = new Set([...select.options].map((option) => option.value));
    select.append(...classes.filter((label) => !listed.has(label)).map((label) => new Option(label)));
  }

  function show() {
    for (const group of groups) {
      const change = changes.get(group.dataset.hash);
      const select = group.querySelector("select");
      if (change) listClasses(select);
      select.value = change?.label || group.dataset.label;
      group.classList.toggle("changed", Boolean(change) && change.action !== "keep");
      const chosen = change?.action ?? (decided.has(group.dataset.hash) ? "keep" : "");
      for (const button of group.querySelectorAll("button")) {
        const { action, label } = button.dataset;
        button.setAttribute("aria-pressed", action === chosen && (action !== "relabel" || label === change.label));
      }
    }
    const actions = [...changes.values()].map((change) => change.action);
    const count = (action) => actions.filter((one) => one === action).length;
    const now = `${count("relabel")} relabelled, ${count("drop")} dropped, ${count("keep")} kept.`;
    const before = earlier.length ? ` ${earlier.length} decisions of before stay.` : "";
    document.getElementById("mend-count").value = (changes.size ? now : "Nothing is decided yet.") + before;
    document.getElementById("mend-download").disabled = !changes.size;
  }

  function filter() {
    const wanted = filters.filter((one) => one.value).map((one) => [one.dataset.filter, one.value]);
    for (const card of cards) {
      const own = [...card.querySelectorAll(".mend")];
      card.hidden = !own.some(({ dataset }) => wanted.every(([name, value]) => dataset[name] === value));
    }
    const shown = cards.filter((card) => !card.hidden).length;
    document.getElementById("cards-shown").textContent = `${shown} of ${cards.length} cards shown`;
  }

  function table() {
    const rows = new Map(earlier.map((row) => [row.hash, row]));
    for (const [hash, change] of changes) rows.set(hash, { hash, ...change, was: rows.get(hash)?.was ?? change.was });
    const columns = ["hash", "path", "was", "action", "label"];
    const quoted = [...rows.values()].map((row) => columns.map((name) => `"${row[name].replaceAll('"', '""')}"`));
    return [columns, ...quoted].map((cells) => cells.join(",") + "\n").join("");
  }

  for (const group of groups) {
    const select = group.querySelector("select");
    for (const event of ["focus", "pointerdown"]) select.addEventListener(event, () => listClasses(select));
    select.addEventListener("change", () => decide(group.dataset, "relabel", select.value));
    for (const button of group.querySelectorAll("button"))
      button.addEventListener("click", () => decide(group.dataset, button.dataset.action, button.dataset.label));
  }
  for (const one of filters) one.addEventListener("change", filter);
  document.getElementById("mend-download").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
    link.download = "corrections.csv";
    link.click();
  });
  for (const one of filters) one.value = "";
  show();
  filter();
});
