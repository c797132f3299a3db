// The chart parts that the report and the live page share: drawing, tooltips, and the norms chosen everywhere.
"use strict";
const normlab = (() => {
  const views = new Map();
  let chosen = [];
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  tip.setAttribute("role", "status");

  // All text goes in as text, never as markup: names come from users.
  function showTip(_handler, event, _item, value) {
    if (value === null || value === undefined || value === "") { tip.hidden = true; return; }
    const pairs = value.tip ?? (typeof value === "object" ? Object.entries(value) : [["", value]]);
    const list = document.createElement("dl");
    for (const [name, text] of pairs) {
      const term = document.createElement("dt"), data = document.createElement("dd");
      term.textContent = name;
      data.textContent = text;
      list.append(term, data);
    }
    tip.replaceChildren(list);
    tip.hidden = false;
    const box = tip.getBoundingClientRect(), gap = 14;
    const right = event.clientX + gap + box.width < innerWidth;
    tip.style.left = `${right ? event.clientX + gap : Math.max(4, event.clientX - gap - box.width)}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + gap, innerHeight - box.height - 4))}px`;
  }

  async function draw(place, spec, config) {
    views.get(place)?.finalize();
    // ast: expressions are interpreted, so the page needs no permission to evaluate code.
    const options = { config, actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: showTip };
    const { view } = await vegaEmbed(place, structuredClone(spec), options);
    views.set(place, view);
    const picture = place.querySelector("svg");
    picture?.setAttribute("aria-label", place.dataset.label ?? "");
    choose(view);
    place.dataset.drawn = "yes";
    return view;
  }

  function forget(place) {
    views.get(place)?.finalize();
    views.delete(place);
  }

  function choose(view) {
    try { view.signal("chosen", chosen).runAsync(); } catch { /* a chart without norms has no such signal */ }
  }

  function chips(nav) {
    nav.addEventListener("click", (event) => {
      const chip = event.target.closest(".chip");
      if (!chip) return;
      const norm = chip.dataset.norm;
      chosen = chosen.includes(norm) ? chosen.filter((name) => name !== norm) : [...chosen, norm];
      for (const other of nav.querySelectorAll(".chip")) {
        other.setAttribute("aria-pressed", String(chosen.includes(other.dataset.norm)));
      }
      for (const view of views.values()) choose(view);
      document.dispatchEvent(new CustomEvent("norms", { detail: chosen }));
    });
  }

  document.addEventListener("DOMContentLoaded", () => document.body.append(tip));
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  return { draw, forget, chips };
})();
