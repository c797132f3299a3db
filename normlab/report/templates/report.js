// The report's own script: unpack what the file carries, then draw.
"use strict";
async function unpacked(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function offer(button) {
  button.addEventListener("click", async () => {
    const text = await unpacked("raw");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
    link.download = button.dataset.name;
    link.click();
    URL.revokeObjectURL(link.href);
  });
  button.hidden = false;
}

// A <select> shows one of several groups of figures; groups are drawn when first seen.
function picker(select, drawAll) {
  const show = () => {
    for (const group of document.querySelectorAll(`[data-group="${select.id}"]`)) {
      group.hidden = group.dataset.choice !== select.value;
    }
    drawAll();
  };
  select.addEventListener("change", show);
  show();
}

document.addEventListener("DOMContentLoaded", async () => {
  const library = document.createElement("script");
  library.textContent = await unpacked("library");
  document.head.append(library);
  const { figures, config } = JSON.parse(await unpacked("payload"));
  for (const nav of document.querySelectorAll("nav.norms")) normlab.chips(nav);
  const drawAll = async () => {
    for (const place of document.querySelectorAll(".chart")) {
      if (place.dataset.drawn || place.closest("[hidden]")) continue;
      place.dataset.drawn = "drawing";
      await normlab.draw(place, figures[place.dataset.chart], config);
    }
  };
  for (const button of document.querySelectorAll("button[data-name]")) offer(button);
  for (const select of document.querySelectorAll(".pick select")) picker(select, drawAll);
  await drawAll();
  document.documentElement.dataset.ready = "yes";
});
