// Keeps what is marked `data-live` fresh, and asks before what cannot be undone.
"use strict";

document.addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !window.confirm(question)) event.preventDefault();
});

const live = document.querySelector("[data-live]");
if (live) {
  const pause = Number(live.dataset.every || 2) * 1000;
  const refresh = async () => {
    if (!document.hidden) {
      try {
        const answer = await fetch(live.dataset.live, { headers: { "X-Fragment": "1" } });
        if (answer.redirected) return window.location.reload();
        if (answer.ok) {
          live.innerHTML = await answer.text();
          live.classList.remove("stale");
        }
      } catch {
        live.classList.add("stale");
      }
    }
    setTimeout(refresh, pause);
  };
  setTimeout(refresh, pause);
}
