"use strict";
// Values under the pointer, read back from what is drawn; a choice of layers.
(() => {
  const root = document.documentElement, tip = document.getElementById("tip");
  root.classList.add("js");
  const number = (v) => !isFinite(v) ? "–" : v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5)
    ? v.toExponential(2) : String(+v.toPrecision(3));
  const scale = (text) => {
    const [low, high, isLog] = text.split(" ").map(Number);
    return (p) => isLog ? low * Math.pow(high / low, p) : low + (high - low) * p;
  };
  const show = (event, text) => {
    tip.textContent = text;
    tip.hidden = !text;
    const box = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 14, innerWidth - box.width - 6);
    const over = event.clientY + 16 + box.height > innerHeight;
    tip.style.left = Math.max(4, left) + "px";
    tip.style.top = (over ? event.clientY - box.height - 10 : event.clientY + 16) + "px";
  };
  const share = (event, box) => [
    Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)),
    Math.min(0.9999, Math.max(0, (event.clientY - box.top) / box.height)),
  ];
  const points = new WeakMap();
  const pointsOf = (path) => {
    if (!points.has(path)) {
      const flat = path.getAttribute("d").replace(/h0/g, "").match(/\d+/g) || [];
      points.set(path, flat.map(Number));
    }
    return points.get(path);
  };
  document.querySelectorAll(".chart").forEach((chart) => {
    const plot = chart.querySelector(".plot"), y = scale(chart.dataset.y);
    const [first, last] = chart.dataset.x.split(" ").map(Number);
    plot.addEventListener("pointermove", (event) => {
      const at = share(event, plot.getBoundingClientRect())[0] * 1000, lines = [];
      let found = at;
      plot.querySelectorAll("path[data-name]").forEach((path) => {
        const flat = pointsOf(path);
        let best = -1;
        for (let i = 0; i < flat.length; i += 2)
          if (best < 0 || Math.abs(flat[i] - at) < Math.abs(flat[best] - at)) best = i;
        if (best < 0 || path.dataset.name === "each layer") return;
        found = flat[best];
        lines.push(path.dataset.name + " ≈ " + number(y(1 - flat[best + 1] / 1000)));
      });
      const step = Math.round(first + (last - first) * found / 1000);
      show(event, lines.length ? "step ≈ " + step + "\n" + lines.join("\n") : "");
    });
    plot.addEventListener("pointerleave", (event) => show(event, ""));
  });
  const cards = [...document.querySelectorAll(".layer")];
  const byPlace = new Map(cards.map((card) => [card.id, card]));
  const choose = (card) => {
    cards.forEach((one) => one.classList.toggle("lit", one === card));
    const folded = card.closest("details");
    if (folded) folded.open = true;
    card.hidden = false;
    card.scrollIntoView({block: "center"});
  };
  document.querySelectorAll(".heat").forEach((heat) => {
    const plot = heat.querySelector(".plot"), y = scale(heat.dataset.y);
    const [rows, columns] = heat.dataset.shape.split(" ").map(Number);
    const steps = heat.dataset.steps.split(" ");
    let cells = null;
    const cell = (event) => {
      cells = cells || atob(heat.dataset.cells);
      const [a, b] = share(event, plot.getBoundingClientRect());
      const row = Math.floor(b * rows), column = Math.min(columns - 1, Math.floor(a * columns));
      return [row, column, cells.charCodeAt(row * columns + column)];
    };
    plot.addEventListener("pointermove", (event) => {
      const [row, column, level] = cell(event), card = byPlace.get("layer-" + row);
      const value = !level ? "no value" : (level === 1 ? "≤ " : level === 255 ? "≥ " : "≈ ") +
        number(y((level - 1) / 254));
      show(event, (card ? card.dataset.layer : "") + "\nstep ≈ " + steps[column] + "\n" +
        heat.dataset.name + " " + value);
    });
    plot.addEventListener("pointerleave", (event) => show(event, ""));
    plot.addEventListener("click", (event) => {
      const card = byPlace.get("layer-" + cell(event)[0]);
      show(event, "");
      if (card) choose(card);
    });
  });
  document.querySelectorAll('a[href^="#layer-"]').forEach((link) =>
    link.addEventListener("click", (event) => {
      const card = byPlace.get(link.getAttribute("href").slice(1));
      if (card) { event.preventDefault(); choose(card); }
    }));
  const filter = document.getElementById("filter");
  if (filter) filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase(), folded = document.querySelector(".more");
    cards.forEach((card) => {
      card.hidden = !card.dataset.layer.toLowerCase().includes(wanted);
    });
    if (folded && wanted) folded.open = true;
  });
})();
