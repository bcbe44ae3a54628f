"use strict";
// Selects an event of the page's timelines: by keys, buttons, clicks and #s7.
{
  const steps = JSON.parse(document.getElementById("steps").textContent);
  const last = steps.say.length - 1;
  const bar = document.querySelector(".bar");
  let at = -1;

  const find = (step, what = "") =>
    document.querySelectorAll(`[data-step="${step}"]${what}`);

  // The names of the rows stay at the left edge.
  const pin = (card) => card.querySelector(".names")
    .setAttribute("transform", `translate(${card.scrollLeft} 0)`);

  const reveal = (step) => {
    for (const column of find(step, ".column")) {
      const card = column.closest(".card");
      const x = column.getBoundingClientRect(), view = card.getBoundingClientRect();
      const left = view.left + steps.gutter + 24, right = view.right - 120;
      if (x.left < left) card.scrollLeft -= left - x.left;
      if (x.right > right) card.scrollLeft += x.right - right;
      pin(card);
    }
  };

  const select = (step, remember = true) => {
    step = Math.max(0, Math.min(last, step));
    for (const each of document.querySelectorAll(".on[data-step]"))
      each.classList.remove("on");
    for (const each of find(step)) each.classList.add("on");
    for (const each of document.querySelectorAll(".order button"))
      each.classList.toggle("on", step >= +each.dataset.from && step < +each.dataset.to);
    bar.querySelector(".say").innerHTML = steps.say[step];
    bar.querySelector(".at").textContent = `${step} / ${last}`;
    at = step;
    reveal(step);
    if (remember) history.replaceState(null, "", `#s${step}`);
  };

  const fault = () => {
    const next = steps.faults.find((step) => step > at);
    select(next ?? steps.faults[0] ?? at);
  };
  const moves = {
    ArrowLeft: () => select(at - 1), ArrowRight: () => select(at + 1),
    Home: () => select(0), End: () => select(last), v: fault,
  };

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    move();
  });
  for (const button of document.querySelectorAll("[data-key]"))
    button.addEventListener("click", () => moves[button.dataset.key]());
  for (const each of document.querySelectorAll("[data-step]"))
    each.addEventListener("click", (event) => {
      if (!event.target.closest("a")) select(+each.dataset.step);
    });
  for (const button of document.querySelectorAll(".order button"))
    button.addEventListener("click", () => select(+button.dataset.from));

  for (const card of document.querySelectorAll(".card:has(svg .names)"))
    card.addEventListener("scroll", () => pin(card));

  for (const button of document.querySelectorAll("[data-save]"))
    button.addEventListener("click", () => {
      const picture = document.getElementById(button.dataset.save).cloneNode(true);
      for (const each of picture.querySelectorAll(".on")) each.classList.remove("on");
      picture.querySelector(".names").removeAttribute("transform");
      const style = document.createElementNS(picture.namespaceURI, "style");
      style.textContent = steps.style;
      picture.prepend(style);
      const text = new XMLSerializer().serializeToString(picture);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
      link.download = button.dataset.name;
      link.click();
      URL.revokeObjectURL(link.href);
    });

  const fromHash = () => {
    const found = /^#s(\d+)$/.exec(location.hash);
    if (found) select(+found[1], false);
    return found;
  };
  addEventListener("hashchange", fromHash);
  if (!fromHash()) select(steps.start, false);
}
