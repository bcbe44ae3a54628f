"use strict";
// Opens the case of a cell: its steps, and the page counts as curves.
{
  const known = JSON.parse(document.getElementById("cases").textContent);
  const dialog = document.querySelector("dialog");
  const part = (selector) => dialog.querySelector(selector);
  const cells = new Map([...document.querySelectorAll("a.cell")]
    .map((cell) => [decodeURIComponent(cell.hash.slice(1)), cell]));
  const mild = ["leak", "underflow", "bad-page"];
  let last = 0, at = 0, opened = null;

  const make = (name, attributes, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  };

  const curves = (events) => {
    const step = Math.max(14, Math.min(46, 820 / events.length)), gutter = 76;
    const x = (index) => gutter + (index + 0.5) * step;
    const counted = events.map((event, index) => ({ index, page: event[2],
      before: event[3], count: event[4], fault: event[7], action: event[1] }))
      .filter((event) => event.page !== null);
    const pages = [...new Set(counted.map((event) => event.page))].sort((a, b) => a - b);
    const picture = make("svg", { role: "img", "aria-label": "page counts" });
    const width = gutter + events.length * step + 12;
    let top = 10;
    events.forEach((event, index) => picture.append(make("rect", {
      class: event[7] ? "column broken" : "column", "data-step": index, y: 0,
      x: x(index) - step / 2, width: step, height: "100%" })));
    for (const page of pages) {
      const mine = counted.filter((event) => event.page === page);
      const counts = mine.map((event) => event.count).filter((count) => count !== null);
      const most = Math.max(1, ...counts), least = Math.min(0, ...counts);
      const y = (count) => top + (most - count) * 20;
      for (let count = least; count <= most; count += 1) {
        picture.append(make("line", { class: count ? "grid" : "grid zero", x1: gutter,
          x2: width, y1: y(count), y2: y(count) }));
        picture.append(make("text", { class: "tick", x: gutter - 6, y: y(count) + 4,
          "text-anchor": "end" }, count));
      }
      picture.append(make("text", { class: "name", x: 2, y: y(least) - 6 }, `page ${page}`));
      let path = "", now = 0;
      const marks = [];
      for (const event of mine) {
        if (event.count !== null) {
          const from = event.before ?? now;
          path += `${path ? "H" : `M${x(event.index)} ${y(from)}H`}${x(event.index)}`;
          path += `V${y(event.count)}`;
          now = event.count;
        }
        const style = event.fault ? "fault" : "dot";
        marks.push(make("circle", { class: style, cx: x(event.index), cy: y(now),
          r: event.fault ? 7 : 4, "data-step": event.index }));
      }
      if (path) picture.append(make("path", { class: "count", d: `${path}H${width}` }));
      picture.append(...marks);
      top = y(least) + 30;
    }
    const height = top - 12;
    for (const [key, value] of Object.entries({ width, height,
      viewBox: `0 0 ${width} ${height}` })) picture.setAttribute(key, value);
    return picture;
  };

  const select = (step, reveal = true) => {
    at = Math.max(0, Math.min(last, step));
    for (const each of dialog.querySelectorAll("[data-step]"))
      each.classList.toggle("on", +each.dataset.step === at);
    if (!reveal) return;
    for (const each of dialog.querySelectorAll(`.column.on, tr.on`))
      each.scrollIntoView({ block: "nearest", inline: "nearest" });
  };

  const open = (name) => {
    const [outcome, flags, text, journal] = known.cases[name];
    const events = known.journals[journal].map((number) => known.events[number]);
    part("h1").textContent = name;
    const kind = outcome === "ok" ? "ok" : mild.includes(outcome) ? "mild" : "grave";
    part(".badge").textContent = outcome;
    part(".badge").className = `badge ${kind}`;
    part(".badge").title = known.meanings[outcome];
    part(".more").textContent = flags;
    part(".verdict").className = `verdict ${kind}`;
    part(".verdict").innerHTML = known.texts[text];
    part(".command code").textContent =
      `aoe lab explain ${name}${known.options} --html case.html`;
    part(".curve").replaceChildren(curves(events));
    const body = part("tbody");
    body.replaceChildren();
    events.forEach((event, index) => {
      const [actor, action, page, before, count, rule, note, fault] = event;
      const row = body.insertRow();
      row.dataset.step = index;
      if (fault) row.className = "broken";
      const number = count === null ? "" : before === null ? count : `${before} → ${count}`;
      row.insertCell().textContent = index;
      row.insertCell().textContent = actor;
      row.insertCell().append(document.createElement("code"));
      row.cells[2].firstChild.textContent = action;
      row.insertCell().textContent = page === null ? "" : `page ${page}`;
      row.insertCell().textContent = number;
      row.insertCell().innerHTML = rule;
      row.insertCell().innerHTML = fault ? `<strong>${fault}</strong>: ${note}` : note;
    });
    last = events.length - 1;
    opened = cells.get(name) ?? null;
    if (!dialog.open) dialog.showModal();
    part(".steps").focus({ preventScroll: true });
    dialog.scrollTop = part(".curve").scrollLeft = 0;
    const first = events.findIndex((event) => event[7]);
    select(first === -1 ? 0 : first, false);
  };

  const fromHash = () => {
    const name = decodeURIComponent(location.hash.slice(1));
    if (name in known.cases) open(name);
    else if (dialog.open) dialog.close();
  };
  addEventListener("hashchange", fromHash);
  dialog.addEventListener("close", () => {
    const name = decodeURIComponent(location.hash.slice(1));
    if (name in known.cases) history.replaceState(null, "", location.pathname);
    if (opened) opened.focus();
  });
  part(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    const step = event.target.closest("[data-step]");
    if (event.target === dialog) dialog.close();
    else if (step) select(+step.dataset.step);
  });
  for (const [name, cell] of cells)
    cell.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      history.pushState(null, "", cell.hash);
      open(name);
    });

  const moves = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };
  dialog.addEventListener("keydown", (event) => {
    const step = { ...moves, Home: -1e6, End: 1e6 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    select(at + step);
  });
  // Arrow keys move from cell to cell; only one per table takes part in Tab.
  for (const table of document.querySelectorAll("table.map")) {
    const rows = [...table.tBodies[0].rows].map((row) => [...row.querySelectorAll("a")]);
    rows.flat().forEach((cell, index) => { if (index) cell.tabIndex = -1; });
    table.addEventListener("keydown", (event) => {
      const y = rows.findIndex((row) => row.includes(event.target));
      if (y === -1 || !(event.key in moves)) return;
      const x = rows[y].indexOf(event.target), step = moves[event.key];
      const next = /Left|Right/.test(event.key) ? rows[y][x + step] : rows[y + step]?.[x];
      event.preventDefault();
      if (!next) return;
      event.target.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }
  fromHash();
}
