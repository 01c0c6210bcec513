"use strict";
// Draws the report from the data in this page. All text goes in by textContent, none by innerHTML.
(() => {
  const CHUNK = 48;
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const sums = data.sums;

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "class") element.className = value;
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
    return element;
  }

  // --- words for numbers and times ---------------------------------------------------------------

  const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 2 });
  const usd = (credits) => {
    const value = credits * data.usd_per_credit;
    return "$" + value.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: value < 0.1 ? 3 : 2 });
  };
  const jobs = (count) => `${number(count)} ${count === 1 ? "job" : "jobs"}`;

  function duration(seconds) {
    if (seconds < 90) return `${number(Math.round(seconds * 10) / 10)} s`;
    const minutes = Math.floor(seconds / 60);
    if (minutes < 90) return `${minutes} min ${Math.round(seconds % 60)} s`;
    return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  }

  const day = (time) => new Date(time * 1000).toLocaleDateString("en-GB", { weekday: "long", day: "numeric", month: "long", year: "numeric" });
  const clock = (time, withSeconds) => new Date(time * 1000).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", second: withSeconds ? "2-digit" : undefined });
  const moment = (time) => `${new Date(time * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "short" })}, ${clock(time, true)}`;

  // An address is https, or a path from here; anything else is not made a link.
  function safeUrl(url) {
    if (typeof url !== "string") return "";
    if (/^https:\/\//i.test(url)) return url;
    return /^[a-z][a-z0-9+.-]*:|^[\\/]/i.test(url) ? "" : url;
  }

  // --- head ----------------------------------------------------------------------------------------

  function drawHead() {
    const ended = data.rows.map((row) => row.ended_at).filter(Boolean);
    const begin = data.began || (ended.length ? ended.reduce((a, b) => Math.min(a, b)) : 0);
    if (begin) {
      const last = Math.max(begin, ended.reduce((a, b) => Math.max(a, b), 0));
      const until = day(begin) === day(last) ? clock(last) : `${day(last)}, ${clock(last)}`;
      const span = until === clock(begin) ? until : `${clock(begin)} to ${until}`;
      at("when").textContent = `${day(begin)}, ${span}${last > begin ? ` · ${duration(last - begin)}` : ""}`;
    } else {
      at("when").textContent = "Nothing has ended yet.";
    }
    at("made").textContent = `Made by kie_async ${data.version} on ${day(data.made_at)}, ${clock(data.made_at)}. It needs no network; the videos are beside it.`;
    if (data.notice) {
      at("notice").textContent = data.notice;
      at("notice").hidden = false;
    }
  }

  function drawBar() {
    const bar = at("bar");
    const states = Object.entries(sums.states);
    for (const [state, count] of states) {
      const part = make("span", { "data-state": state, title: `${state}: ${number(count)}` });
      part.style.flexGrow = count;
      bar.append(part);
    }
    bar.setAttribute("aria-label", states.map(([state, count]) => `${number(count)} ${state}`).join(", ") || "no jobs");
  }

  function drawTiles() {
    const done = (sums.states.done || 0);
    const rest = sums.total - done;
    addTile("Done", number(done), ` of ${number(sums.total)}`, rest ? `${jobs(rest)} not done` : "all of them");
    if (data.began) {
      addTile("Credits of this run", number(sums.run_credits), "", `${usd(sums.run_credits)} · ${jobs(sums.run_ended)} ended`);
    }
    const tasks = `${number(sums.all_tasks)} ${sums.all_tasks === 1 ? "task" : "tasks"}`;
    addTile("Credits of all runs", number(sums.all_credits), "", `${usd(sums.all_credits)} · ${tasks}`);
    if (sums.median_s !== null) {
      addTile("Took, median", duration(sums.median_s), "", `90 % within ${duration(sums.slowest_s)}`);
    }
    const sources = Object.values(sums.sources).reduce((a, b) => a + b, 0);
    if (sources) {
      const callbacks = sums.sources.callback || 0;
      addTile("Told by callback", `${Math.round((100 * callbacks) / sources)}`, " %", `${number(callbacks)} by callback, ${number(sources - callbacks)} by poll`);
    }
  }

  function addTile(name, big, unit, sub) {
    const value = make("span", {}, big);
    const line = make("dd", { class: "big" }, value);
    if (unit) line.append(make("small", {}, unit));
    at("tiles").append(make("div", {}, make("dt", {}, name), line, make("dd", { class: "sub" }, sub)));
  }

  // --- over time -----------------------------------------------------------------------------------

  const TICKS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 2592000, 31536000];
  const SVG = "http://www.w3.org/2000/svg";

  function draw(tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function niceCeiling(value) {
    const power = 10 ** Math.floor(Math.log10(value || 1));
    return [1, 2, 3, 4, 5, 6, 8, 10].map((times) => times * power).find((ceiling) => ceiling >= value) || value || 1;
  }

  function drawChart() {
    const series = sums.series;
    if (!series) return;
    at("time").hidden = false;
    const chart = at("chart");
    const width = Math.max(chart.clientWidth, 240), height = chart.clientHeight;
    const steps = series.done.length, left = 34, right = width - 50, top = 14, bottom = height - 26;
    const total = series.credits[steps - 1];
    const mostEnds = niceCeiling(Math.max(...series.done.map((count, step) => count + series.failed[step])));
    const mostCredits = niceCeiling(total);
    const x = (step) => left + ((right - left) * step) / steps;
    const y = (share) => bottom - (bottom - top) * share;
    const svg = draw("svg", { role: "img", viewBox: `0 0 ${width} ${height}`, "aria-label": chartLabel(series, total) });
    for (const share of [0, 0.5, 1]) {
      svg.append(draw("line", { class: "grid", x1: left, x2: right, y1: y(share), y2: y(share) }));
      if (share && Number.isInteger(mostEnds * share)) svg.append(draw("text", { x: left - 8, y: y(share) + 4, "text-anchor": "end" }, number(mostEnds * share)));
      if (share && total) svg.append(draw("text", { class: "right", x: right + 8, y: y(share) + 4 }, number(mostCredits * share)));
    }
    const points = [`${left},${bottom}`, ...series.credits.map((sum, step) => `${x(step + 1)},${y(sum / mostCredits)}`)];
    if (total) svg.append(draw("polygon", { class: "under", points: [...points, `${right},${bottom}`].join(" ") }));
    const room = (right - left) / steps, wide = Math.max(1, Math.min(room * 0.72, 34));
    for (let step = 0; step < steps; step++) {
      const done = series.done[step], failed = series.failed[step];
      if (!done && !failed) continue;
      const bar = draw("g", {});
      bar.append(draw("title", {}, `${stepName(series, step)}: ${number(done)} done, ${number(failed)} not done`));
      const from = x(step) + (room - wide) / 2, split = y(done / mostEnds), end = y((done + failed) / mostEnds);
      if (done) bar.append(draw("rect", { class: "bars-done", x: from, width: wide, y: split, height: bottom - split, rx: Math.min(3, wide / 3) }));
      if (failed) bar.append(draw("rect", { class: "bars-failed", x: from, width: wide, y: end, height: Math.max(1, split - end - 1), rx: Math.min(3, wide / 3) }));
      svg.append(bar);
    }
    if (total) svg.append(draw("polyline", { class: "spent", points: points.join(" ") }));
    const length = series.step_s * steps, most = Math.max(1, Math.floor((right - left) / 85));
    const between = TICKS_S.find((tick) => length / tick <= most) || length;
    // Ticks are full hours and the like of the reader's own clock.
    const shift = new Date(series.begin * 1000).getTimezoneOffset() * 60;
    for (let time = Math.ceil((series.begin - shift) / between) * between + shift; time <= series.begin + length; time += between) {
      const text = between >= 86400 ? new Date(time * 1000).toLocaleDateString("en-GB", { day: "numeric", month: "short" }) : clock(time, between < 60);
      const where = left + ((right - left) * (time - series.begin)) / length;
      svg.append(draw("line", { class: "grid", x1: where, x2: where, y1: bottom, y2: bottom + 5 }));
      svg.append(draw("text", { x: where, y: height - 5, "text-anchor": "middle" }, text));
    }
    chart.replaceChildren(svg);
  }

  const stepName = (series, step) => `${clock(series.begin + step * series.step_s, series.step_s < 60)} to ${clock(series.begin + (step + 1) * series.step_s, series.step_s < 60)}`;

  function chartLabel(series, total) {
    const steps = series.done.length;
    const add = (values) => values.reduce((a, b) => a + b, 0);
    return `From ${clock(series.begin)} to ${clock(series.begin + steps * series.step_s)}: ${number(add(series.done))} done, ${number(add(series.failed))} not done, ${number(total)} credits in all.`;
  }

  // --- reasons -------------------------------------------------------------------------------------

  const ADVICE = {
    "perhaps paid": "Money may have been spent and no answer proved it. Search https://kie.ai/logs before one of these is sent again.",
    "done, not saved": "Paid and made; only the download is missing. Run the same command again soon: the service keeps results for a day at least.",
    "not sent": "Nothing was sent and nothing was paid. Run the same command again.",
  };

  function drawReasons() {
    if (!sums.reasons.length) return;
    at("care").hidden = false;
    sums.reasons.forEach((reason, index) => at("reasons").append(reasonBox(reason, index)));
    if (sums.more_reasons) {
      at("reasons").append(make("p", { class: "quiet" }, `${number(sums.more_reasons)} further reasons are in results.csv.`));
    }
  }

  function reasonBox(reason, index) {
    const words = reason.text || (reason.state === "not sent" ? "Not reached in this run" : "No reason given");
    const left = reason.count - reason.refs.length;
    const box = make("details", { class: "reason", "data-state": reason.state },
      make("summary", {},
        make("span", { class: "many" }, number(reason.count)), pill(reason.state),
        make("bdi", { class: "words" }, words)));
    box.addEventListener("toggle", () => {
      if (!box.open || box.children.length > 1) return;
      const refs = reason.refs.join("\n");
      box.append(make("div", { class: "inside" },
        ADVICE[reason.state] ? make("p", { class: "advice" }, ADVICE[reason.state]) : null,
        make("pre", { class: "refs", tabindex: "0", role: "region", "aria-label": `Refs of: ${words}` }, refs),
        left ? make("p", { class: "advice" }, `${number(left)} more are in results.csv.`) : null,
        make("div", { class: "row" },
          make("button", { type: "button", class: "plain", onclick: () => copy(refs, reason.refs.length) }, `Copy ${number(reason.refs.length)} ${reason.refs.length === 1 ? "ref" : "refs"}`),
          make("button", { type: "button", class: "plain", onclick: () => showReason(index) }, "Show these jobs"))));
    });
    return box;
  }

  async function copy(text, count) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Where pages from disk may not use the clipboard, the old way still works.
      const area = make("textarea", { class: "unseen", "aria-hidden": "true" });
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    at("copied").textContent = `Copied ${number(count)} ${count === 1 ? "ref" : "refs"}`;
    setTimeout(() => { at("copied").textContent = ""; }, 2500);
  }

  const pill = (state) => make("span", { class: "pill", "data-state": state }, make("span", { class: "dot", "aria-hidden": "true" }), state);

  // --- one job -------------------------------------------------------------------------------------

  function card(row) {
    const media = make("div", { class: "media" });
    rowOf.set(media, row);
    seen.observe(media);
    const body = make("div", { class: "body" },
      make("div", { class: "name" }, make("h3", { dir: "auto" }, row.ref || row.task_id || "no ref"), pill(row.state)),
      ...prompt(row),
      row.state === "done" || !why(row) ? null : make("p", { class: "why", dir: "auto" }, why(row)),
      facts(row), files(row));
    return make("li", { class: "card", "data-state": row.state }, media, body);
  }

  // Of a create that is perhaps paid all is said, since its intent is what one searches for.
  const why = (row) => (row.why === undefined || row.state === "perhaps paid" ? row.reason : sums.reasons[row.why].text);

  function prompt(row) {
    if (!row.prompt) return [];
    const text = make("p", { class: "prompt short", dir: "auto" }, row.prompt);
    if (row.prompt.length < 110 && row.prompt.split("\n").length < 4) return [text];
    const more = make("button", { type: "button", class: "link", "aria-expanded": "false", "aria-label": `All of the prompt of ${row.ref}` }, "all of it");
    more.addEventListener("click", () => {
      const isShort = text.classList.toggle("short");
      more.setAttribute("aria-expanded", String(!isShort));
      more.textContent = isShort ? "all of it" : "less of it";
    });
    return [text, more];
  }

  function facts(row) {
    const list = make("dl", { class: "facts" });
    const add = (name, value, wide) => list.append(make("div", wide ? { class: "wide" } : {}, make("dt", {}, name), make("dd", { dir: "auto", title: wide ? value : false }, value)));
    if (row.took_s !== undefined) add("took", duration(row.took_s));
    if (row.credits !== undefined) add("credits", number(row.credits));
    if (row.told_by) add("told by", row.told_by);
    if (row.ended_at) add("at", moment(row.ended_at));
    if (row.model) add("model", row.model, true);
    if (row.task_id) add("task", row.task_id, true);
    return list;
  }

  function files(row) {
    const links = [];
    for (const file of row.files || []) {
      if (file.src && safeUrl(file.src) && !file.missing) links.push(make("a", { href: safeUrl(file.src), title: file.name }, file.name));
      else links.push(make("span", { title: file.name }, `missing: ${file.name}`));
    }
    if (!links.length || (row.files || []).some((file) => file.missing)) {
      (row.urls || []).filter(safeUrl).forEach((url, index, all) => links.push(
        make("a", { href: safeUrl(url), rel: "noreferrer noopener", target: "_blank" }, `at the service${all.length > 1 ? ` (${index + 1})` : ""}`)));
    }
    return links.length ? make("p", { class: "files" }, ...links) : null;
  }

  // Media are loaded when they come near the window, and let go when they are far from it.
  const rowOf = new WeakMap();
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) fill(entry.target);
      else empty(entry.target);
    }
  }, { rootMargin: "400px 0px" });

  function fill(media) {
    if (media.childElementCount) return;
    const row = rowOf.get(media), file = (row.files || [])[0];
    if (!file) return withoutFile(media, row);
    const src = safeUrl(file.src);
    if (file.missing || !src) return sayMissing(media, row, file);
    const onerror = () => sayMissing(media, row, file);
    if (file.kind === "video") {
      const poster = safeUrl(row.poster);
      // Without a poster a phone shows a frame only if it is asked for a moment in the film.
      const video = make("video", { src: poster ? src : `${src}#t=0.1`, poster: poster || false, playsinline: true, preload: "metadata", "aria-label": `Video of ${row.ref}`, onerror });
      media.append(video, make("button", { type: "button", class: "play", "aria-label": `Play the video of ${row.ref}`, onclick: (event) => play(video, event.currentTarget) }));
    } else if (file.kind === "image") {
      media.append(make("img", { src, alt: `Result of ${row.ref}`, onerror }));
    } else if (file.kind === "audio") {
      media.append(make("audio", { src, controls: true, preload: "metadata", "aria-label": `Sound of ${row.ref}`, onerror }));
    } else {
      media.append(make("p", { class: "says" }, make("strong", {}, "A file"), file.name));
    }
  }

  function play(video, button) {
    for (const other of document.querySelectorAll("video")) if (other !== video) other.pause();
    button.remove();
    video.controls = true;
    video.currentTime = 0;
    video.play().catch(() => {});
    video.focus();
  }

  function empty(media) {
    const player = media.querySelector("video, audio");
    if (!player || player.controls && (!player.paused || player.currentTime > 0)) return;
    player.removeAttribute("src");
    player.load();
    media.replaceChildren();
  }

  function sayMissing(media, row, file) {
    const kind = file.kind === "file" ? "file" : file.kind;
    media.replaceChildren(...dimmed(row), make("p", { class: "says missing" },
      make("strong", {}, `The ${kind} is missing`), make("bdi", {}, file.name), " is not where it was saved."));
  }

  function withoutFile(media, row) {
    const words = {
      "done, not saved": "The result was made, but is not on this disk.", done: "No file was saved.",
      failed: "No result.", refused: "The service refused it.", "not sent": "Nothing was sent.",
      "perhaps paid": "Nobody knows whether it was made.", running: "Still running at the service.",
    }[row.state] || "";
    media.append(...dimmed(row), make("p", { class: "says" }, make("strong", {}, row.state), words));
  }

  function dimmed(row) {
    const poster = safeUrl(row.poster);
    return poster ? [make("img", { src: poster, class: "dim", alt: "", onerror: (event) => event.target.remove() })] : [];
  }

  // --- search, filter, order -----------------------------------------------------------------------

  const shown = { states: new Set(), query: "", order: "file", reason: null, rows: [], drawn: 0 };

  const ORDERS = {
    ended: (a, b) => (b.ended_at || 0) - (a.ended_at || 0),
    took: (a, b) => (b.took_s || 0) - (a.took_s || 0),
    credits: (a, b) => (b.credits || 0) - (a.credits || 0),
  };

  const fold = (text) => text.normalize("NFKD").replace(/\p{M}/gu, "").toLowerCase();

  function haystack(row) {
    row.text ??= fold([row.ref, row.prompt, row.model, row.task_id, row.reason].filter(Boolean).join("\n"));
    return row.text;
  }

  function update() {
    const words = fold(shown.query).split(/\s+/).filter(Boolean);
    shown.rows = data.rows.filter((row) =>
      (!shown.states.size || shown.states.has(row.state)) &&
      (shown.reason === null || row.why === shown.reason) &&
      words.every((word) => haystack(row).includes(word)));
    if (ORDERS[shown.order]) shown.rows.sort(ORDERS[shown.order]);
    shown.drawn = 0;
    seen.disconnect();
    at("sheet").replaceChildren();
    drawMore();
    const isAll = shown.rows.length === data.rows.length;
    const kept = data.rows.length < sums.total ? `; ${number(sums.total)} in all, the others are in results.csv` : "";
    const words2 = isAll ? jobs(shown.rows.length) : `${number(shown.rows.length)} of ${jobs(data.rows.length)}`;
    at("count").textContent = words2 + kept + (shown.reason === null ? "" : `, with the reason: ${sums.reasons[shown.reason].text || "none given"}`);
    at("reset").hidden = isAll && !shown.states.size && !shown.query;
    if (!shown.rows.length) at("sheet").append(make("li", { class: "empty" }, data.rows.length ? "No job is like that." : "There are no jobs yet."));
    for (const button of at("states").children) button.setAttribute("aria-pressed", String(shown.states.has(button.dataset.state)));
  }

  function drawMore() {
    const next = shown.rows.slice(shown.drawn, shown.drawn + CHUNK);
    at("sheet").append(...next.map(card));
    shown.drawn += next.length;
    at("more").hidden = shown.drawn >= shown.rows.length;
  }

  function showReason(index) {
    Object.assign(shown, { states: new Set(), query: "", reason: index });
    at("query").value = "";
    update();
    at("jobs").scrollIntoView();
    at("jobs").focus({ preventScroll: true });
  }

  function reset() {
    Object.assign(shown, { states: new Set(), query: "", reason: null });
    at("query").value = "";
    update();
    at("query").focus();
  }

  function drawTools() {
    for (const [state, count] of Object.entries(sums.states)) {
      at("states").append(make("button", { type: "button", "data-state": state, "aria-pressed": "false", onclick: () => toggle(state) },
        make("span", { class: "dot", "aria-hidden": "true" }), `${state} `, make("b", {}, number(count))));
    }
    let waiting = 0;
    at("query").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => { shown.query = at("query").value; update(); }, 60);
    });
    at("order").addEventListener("change", () => { shown.order = at("order").value; update(); });
    at("tools").addEventListener("submit", (event) => event.preventDefault());
    at("reset").addEventListener("click", reset);
    at("layout").addEventListener("click", () => {
      const isList = at("sheet").classList.toggle("list");
      at("layout").setAttribute("aria-pressed", String(isList));
    });
    document.addEventListener("keydown", (event) => {
      const isTyping = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
      if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
        event.preventDefault();
        at("query").focus();
      }
    });
    at("more").querySelector("button").addEventListener("click", () => {
      const first = at("sheet").childElementCount;
      drawMore();
      const target = at("sheet").children[first];
      if (target) { target.tabIndex = -1; target.focus({ preventScroll: true }); }
    });
    new IntersectionObserver((entries) => { if (entries.some((entry) => entry.isIntersecting)) drawMore(); }, { rootMargin: "1400px 0px" }).observe(at("more"));
  }

  function toggle(state) {
    if (!shown.states.delete(state)) shown.states.add(state);
    update();
  }

  drawHead();
  drawBar();
  drawTiles();
  drawChart();
  drawReasons();
  drawTools();
  update();
  new ResizeObserver(drawChart).observe(at("chart"));
  document.documentElement.dataset.ready = Math.round(performance.now());
})();
