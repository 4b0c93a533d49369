"use strict";
// Everything here is a comfort; without it the page shows the lung window and unsorted tables.
(() => {
  for (const viewer of document.querySelectorAll(".viewer")) {
    viewer.querySelector(".controls").hidden = false;
    for (const radio of viewer.querySelectorAll("input[type=radio]")) {
      radio.addEventListener("change", () => { stop(); viewer.dataset.window = radio.value; });
      if (radio.checked) viewer.dataset.window = radio.value; // browsers restore choices on reload
    }
    const outline = viewer.querySelector(".show-outline");
    const draw = () => { for (const image of viewer.querySelectorAll(".outline")) image.hidden = !outline.checked; };
    if (outline) { outline.addEventListener("change", draw); draw(); }
    const button = viewer.querySelector(".blink");
    let timer = 0, flipped = false;
    const flip = () => {
      flipped = !flipped;
      for (const example of viewer.querySelectorAll(".example")) {
        const target = example.querySelector(".clean");
        const source = flipped ? example.querySelector(".triggered") : null;
        for (const image of target.querySelectorAll(".view")) {
          image.dataset.own ||= image.src;
          const other = source && [...source.querySelectorAll(".view")].find((item) => item.className === image.className);
          image.src = other ? other.src : image.dataset.own;
        }
        const caption = target.querySelector("figcaption");
        caption.dataset.own ||= caption.textContent;
        caption.textContent = flipped ? "Blinking: with the trigger" : timer ? "Blinking: clean" : caption.dataset.own;
        target.classList.toggle("flipped", flipped);
      }
    };
    function stop() {
      clearInterval(timer);
      timer = 0;
      flipped = true;
      if (button) { flip(); button.setAttribute("aria-pressed", "false"); } else flipped = false;
    }
    if (button) button.addEventListener("click", () => {
      // Who asks for less motion gets one change per click; one change a second is far below what can provoke seizures.
      if (matchMedia("(prefers-reduced-motion: reduce)").matches) { flip(); button.setAttribute("aria-pressed", String(flipped)); return; }
      if (timer) { stop(); return; }
      button.setAttribute("aria-pressed", "true");
      timer = setInterval(flip, 1000);
      flip();
    });
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const key = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent;
        const compare = (a, b) => {
          const [x, y] = [key(a), key(b)];
          const numeric = x !== "" && y !== "" && !Number.isNaN(Number(x)) && !Number.isNaN(Number(y));
          return numeric ? Number(x) - Number(y) : x.localeCompare(y, "en");
        };
        body.append(...[...body.rows].sort((a, b) => (down ? -1 : 1) * compare(a, b)));
      });
    });
  }

  const open = () => {
    const wanted = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let here = wanted; here; here = here.parentElement) if (here.tagName === "DETAILS") here.open = true;
    if (wanted) wanted.scrollIntoView();
  };
  addEventListener("hashchange", open);
  open();
  // A closed section would be missing on paper.
  const opened = [];
  addEventListener("beforeprint", () => { for (const item of document.querySelectorAll("details:not([open])")) { item.open = true; opened.push(item); } });
  addEventListener("afterprint", () => { for (const item of opened.splice(0)) item.open = false; });
})();
