// Keeps a page up to date: on a hint from the server, the page is fetched again as the server renders it, and the parts
// marked with data-live are exchanged. Numbers are set as text; nothing that was sent ever becomes markup here.
"use strict";

(() => {
  const EVENTS = "/api/v1/events";
  const LEAST = 1000; // ms between two refreshes
  const POLL = 5000; // ms, where nobody tells of changes, or that many things change by themselves (ages)
  const SOON = 1000;
  const POINTS = 60; // of a sparkline

  const word = document.getElementById("live-word");
  const button = document.getElementById("live-pause");
  const frame = document.getElementById("live");
  if (!word || !button || !frame || !document.querySelector("main [data-live]")) return;
  frame.hidden = false;

  let paused = false;
  let source = null;
  let retry = 1000;
  let timer = 0;
  let due = 0;
  let last = 0;
  let running = false;
  let again = false; // asked for while one was running

  const say = (text) => { if (word.textContent !== text) word.textContent = text; };
  const kinds = () => new Set([...document.querySelectorAll("[data-live]")].map((part) => part.dataset.live));

  // Somebody is selecting text there, or is in the middle of a field: what they have in hand is not taken away.
  const busy = (part) => {
    const chosen = getSelection();
    return (chosen && !chosen.isCollapsed && part.contains(chosen.anchorNode)) ||
      (part.contains(document.activeElement) && document.activeElement.matches("input:not([type=checkbox]), select"));
  };

  const key = (node) => {
    if (node.nodeType !== Node.ELEMENT_NODE) return null;
    if (node.id) return "#" + node.id;
    const named = node.matches("tr, li") ? node.querySelector("a[href], input[name=id]") : null;
    return named && (named.getAttribute("href") || named.value);
  };

  const alike = (one, other) => one.nodeType === other.nodeType && one.nodeName === other.nodeName && key(one) === key(other);

  const attributes = (mine, fresh) => {
    const own = (name) => name === "open" || name === "data-values" || name === "points"; // changed by the reader, or by us
    for (const { name } of [...mine.attributes]) if (!own(name) && !fresh.hasAttribute(name)) mine.removeAttribute(name);
    for (const { name, value } of fresh.attributes) {
      if (!own(name) && mine.getAttribute(name) !== value) mine.setAttribute(name, value);
    }
  };

  // Make a node like a fresh one and keep what is the same: focus, ticks, scroll positions, opened details.
  const renew = (mine, fresh) => {
    if (mine.isEqualNode(fresh)) return;
    if (mine.nodeType !== Node.ELEMENT_NODE) { mine.nodeValue = fresh.nodeValue; return; }
    attributes(mine, fresh);
    const known = new Map([...mine.childNodes].filter(key).map((child) => [key(child), child]));
    let at = mine.firstChild;
    for (const next of fresh.childNodes) {
      const same = key(next) ? known.get(key(next)) : at && alike(at, next) ? at : null;
      known.delete(key(next)); // several may have the same key
      if (same) {
        if (same === at) at = at.nextSibling; else mine.insertBefore(same, at);
        renew(same, next);
      } else {
        mine.insertBefore(document.importNode(next, true), at);
      }
    }
    while (at) { const gone = at; at = at.nextSibling; gone.remove(); }
  };

  const exchange = (fresh) => {
    const held = document.activeElement;
    for (const part of document.querySelectorAll("[data-live][id]")) {
      const next = fresh.getElementById(part.id);
      if (next && !busy(part)) renew(part, next);
    }
    if (held && held !== document.activeElement && held.isConnected) held.focus({ preventScroll: true });
  };

  const refresh = async () => {
    clearTimeout(timer);
    timer = 0;
    if (running) again = true;
    if (paused || document.hidden || running) return;
    running = true;
    again = false;
    try {
      const answer = await fetch(location.href, { credentials: "same-origin", signal: AbortSignal.timeout(15000) });
      if (answer.redirected && new URL(answer.url).pathname !== location.pathname) { location.reload(); return; }
      if (!answer.ok) say(answer.status === 401 ? "signed out: load the page again" : "no answer, status " + answer.status);
      const text = answer.ok ? await answer.text() : "";
      if (text && !paused) exchange(new DOMParser().parseFromString(text, "text/html"));
      if (text && !paused && source && source.readyState === EventSource.OPEN) say("live");
    } catch {
      say("offline"); // the next event, or the next poll, tries again
    } finally {
      running = false;
      last = Date.now();
      plan(again ? 0 : kinds().has("soon") ? SOON : POLL);
    }
  };

  const plan = (wait) => {
    if (paused) return;
    const at = Math.max(Date.now() + wait, last + LEAST);
    if (timer && due <= at) return;
    clearTimeout(timer);
    due = at;
    timer = setTimeout(refresh, at - Date.now());
  };

  // Numbers and their lines

  const shown = (number) => number >= 100 ? Math.round(number).toLocaleString("en") : number.toFixed(number >= 10 ? 0 : 1);

  const draw = (name, rate) => {
    const place = document.getElementById("rate-" + name);
    if (!place || !Number.isFinite(rate)) return;
    const number = place.querySelector(".value");
    const line = place.querySelector("polyline");
    if (number) number.textContent = shown(rate);
    if (!line) return;
    const values = (line.dataset.values || "").split(" ").filter(Boolean).map(Number);
    values.push(rate);
    while (values.length > POINTS) values.shift();
    line.dataset.values = values.join(" ");
    const top = Math.max(...values, 1);
    const step = 100 / (POINTS - 1);
    const from = 100 - (values.length - 1) * step;
    line.setAttribute("points", values.map((value, index) =>
      (from + index * step).toFixed(2) + "," + (29 - 27 * value / top).toFixed(2)).join(" "));
  };

  const stats = (event) => {
    if (paused) return;
    let told;
    try { told = JSON.parse(event.data); } catch { return; }
    for (const [name, rate] of Object.entries((told && told.rates) || {})) {
      if (/^[a-z_]+$/.test(name)) draw(name, Number(rate));
    }
  };

  // Events

  const listen = () => {
    if (paused || source) return;
    source = new EventSource(EVENTS);
    source.addEventListener("open", () => { retry = 1000; say("live"); plan(0); });
    source.addEventListener("stats", stats);
    source.addEventListener("changed", () => plan(0));
    source.addEventListener("error", () => {
      if (!source || source.readyState !== EventSource.CLOSED) { say("reconnecting"); return; }
      source = null; // refused for good, as too many listen for example: ask again later, and poll meanwhile
      say("every " + POLL / 1000 + " s");
      setTimeout(listen, retry);
      retry = Math.min(retry * 2, 60000);
    });
  };

  const stop = () => {
    if (source) source.close();
    source = null;
    clearTimeout(timer);
    timer = 0;
  };

  button.addEventListener("click", () => {
    paused = !paused;
    button.setAttribute("aria-pressed", String(paused));
    button.textContent = paused ? "Resume updates" : "Pause updates";
    if (paused) { stop(); say("paused"); } else { say("connecting"); listen(); plan(0); }
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) plan(0); });
  addEventListener("pagehide", stop);
  addEventListener("pageshow", (event) => { if (event.persisted) { listen(); plan(0); } });

  listen();
  plan(kinds().has("soon") ? SOON : POLL);
})();
