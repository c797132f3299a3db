// The live page: asks for the state when the server says that something has changed.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const at = (id) => document.getElementById(id);
  const config = JSON.parse(at("config").textContent);
  const look = { page: 0, status: "", setting: -1 };
  let busy = false, again = false, heard = Date.now(), age = 0, lost = false, stale = "";

  const ask = async (path, query) => {
    const answer = await fetch(`${path}?${new URLSearchParams(query)}`);
    if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
    return answer.json();
  };

  const duration = (seconds) => {
    if (seconds >= 7200) return `${Math.round(seconds / 3600)} hours`;
    if (seconds >= 120) return `${Math.round(seconds / 60)} minutes`;
    return `${Math.max(1, Math.round(seconds))} seconds`;
  };

  const word = (state) => (state === "pending" ? "queued" : state);

  function options(select, values, chosen) {
    const wanted = JSON.stringify(values);
    if (select.dataset.values === wanted) return;
    select.dataset.values = wanted;
    select.replaceChildren(...values.map(([value, label]) => new Option(label, value, false, String(value) === String(chosen))));
  }

  function tell(state) {
    const { counts } = state;
    const parts = ["done", "running", "pending", "interrupted", "diverged", "failed"]
      .filter((name) => counts[name]).map((name) => `${counts[name]} ${word(name)}`);
    const left = state.seconds_left === null ? "" : `; about ${duration(state.seconds_left)} left`;
    at("summary").textContent = `${parts.join(", ") || "No cells"}${left}`;
    at("verdict").textContent = state.verdict;
    const share = state.planned ? Math.round((100 * state.epochs) / state.planned) : 0;
    at("bar").style.width = `${share}%`;
    at("bar").parentElement.setAttribute("aria-valuenow", share);
    age = state.age;
    heard = Date.now();
    stale = state.stale;
    options(at("setting"), [[-1, "where something is running"], ...state.settings.map((name, i) => [i, name])], look.setting);
    at("setting").closest("label").hidden = state.settings.length < 2;
    options(at("status"), [["", `all ${state.cells}`], ...Object.entries(counts).map(([n, c]) => [n, `${word(n)} (${c})`])], look.status);
    look.page = state.page;
    at("place").textContent = `page ${state.page + 1} of ${state.pages}`;
    at("back").disabled = state.page === 0;
    at("next").disabled = state.page + 1 >= state.pages;
    at("back").closest("p").hidden = state.pages < 2;
    at("rows").replaceChildren(...state.rows.map((values) => {
      const row = document.createElement("tr");
      row.dataset.state = values[0];
      row.append(...values.map((text, i) => {
        const cell = document.createElement(i ? "td" : "th");
        cell.textContent = i ? text : word(text);
        return cell;
      }));
      return row;
    }));
    pulse();
  }

  function pulse() {
    const since = age + (Date.now() - heard) / 1000;
    at("pulse").textContent = `Last sign of life ${duration(since)} ago.`;
    const banner = at("banner");
    banner.textContent = lost ? "The server does not answer; what is shown may be old. Trying again." : stale;
    banner.hidden = !banner.textContent;
  }

  // A chart is drawn aside and then put in place, so that nothing flickers.
  async function show(figures) {
    for (const figure of figures) {
      let frame = at(`figure-${figure.key}`);
      if (!frame) {
        frame = document.createElement("figure");
        frame.id = `figure-${figure.key}`;
        const heading = document.createElement("h3");
        heading.textContent = figure.title;
        frame.append(heading, document.createElement("div"));
        at("figures").append(frame);
      }
      const fresh = document.createElement("div");
      fresh.className = "chart";
      fresh.dataset.chart = figure.key;
      fresh.dataset.label = figure.caption;
      const old = frame.lastElementChild;
      fresh.style.cssText = "position: absolute; visibility: hidden; width: 100%";
      frame.append(fresh);
      await normlab.draw(fresh, figure.spec, config);
      fresh.style.cssText = "";
      normlab.forget(old);
      old.remove();
    }
  }

  async function refresh() {
    if (busy) { again = true; return; }
    busy = true;
    try {
      do {
        again = false;
        tell(await ask("/state", { page: look.page, status: look.status }));
        await show(await ask("/figures", { setting: look.setting }));
        document.documentElement.dataset.ready = "yes";
      } while (again);
      lost = false;
    } catch { lost = true; } finally { busy = false; pulse(); }
  }

  for (const nav of document.querySelectorAll("nav.norms")) normlab.chips(nav);
  at("setting").addEventListener("change", (event) => { look.setting = Number(event.target.value); refresh(); });
  at("status").addEventListener("change", (event) => { look.status = event.target.value; look.page = 0; refresh(); });
  at("back").addEventListener("click", () => { look.page -= 1; refresh(); });
  at("next").addEventListener("click", () => { look.page += 1; refresh(); });
  const events = new EventSource("/events");
  events.addEventListener("change", refresh);
  events.addEventListener("open", () => { lost = false; pulse(); });
  events.addEventListener("error", () => { lost = true; pulse(); });
  setInterval(pulse, 1000);
  // A run that dies commits nothing more, so staleness has to be asked for.
  setInterval(refresh, 15000);
});
