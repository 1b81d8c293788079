// What moves on the page: charts in the page's colours, videos in step, scores and face boxes with them. Fetches nothing.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const find = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Light and dark: as the system says, until somebody switches.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const kept = {
    read: () => { try { return localStorage.getItem("rewardfl-theme"); } catch { return null; } },
    write: (value) => { try { localStorage.setItem("rewardfl-theme", value); } catch { /* a page that may keep nothing */ } },
  };

  function themed() {
    const style = getComputedStyle(root);
    const value = (name) => style.getPropertyValue(name).trim();
    const found = {
      "font.color": value("--faint"), "hoverlabel.bgcolor": value("--card"),
      "hoverlabel.bordercolor": value("--line"), "hoverlabel.font.color": value("--text"),
    };
    for (const axis of ["xaxis", "yaxis"]) {
      found[`${axis}.gridcolor`] = value("--grid");
      found[`${axis}.linecolor`] = found[`${axis}.zerolinecolor`] = value("--line");
    }
    return found;
  }

  const plots = [];
  function draw(element, traces, layout, staticPlot) {
    const whole = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { size: 12, family: "system-ui, sans-serif" }, hoverlabel: { font: {} }, xaxis: { ...layout.xaxis }, yaxis: { ...layout.yaxis } };
    for (const [path, value] of Object.entries(themed())) {
      const keys = path.split("."), last = keys.pop();
      keys.reduce((inside, key) => inside[key], whole)[last] = value;
    }
    Plotly.newPlot(element, traces, whole, { displayModeBar: false, responsive: true, staticPlot, doubleClick: "reset" });
    if (!staticPlot) plots.push(element);
  }

  function paint() {
    root.dataset.shown = isDark() ? "dark" : "light";
    const theme = themed();
    for (const element of plots) Plotly.relayout(element, theme);
  }

  if (["light", "dark"].includes(kept.read())) root.dataset.theme = kept.read();
  paint();
  system.addEventListener("change", paint);
  function switchTheme() {
    root.dataset.theme = isDark() ? "light" : "dark";
    kept.write(root.dataset.theme);
    paint();
  }
  document.getElementById("theme").addEventListener("click", switchTheme);

  for (const element of find("[data-chart]")) {
    const figure = data.charts[element.dataset.chart];
    // A finger that scrolls the page must not drag a chart.
    const still = matchMedia("(pointer: coarse)").matches ? { dragmode: false } : {};
    draw(element, figure.data, { ...figure.layout, ...still }, false);
  }

  // Videos.
  const blobs = data.clips.map((text) => {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
  });

  const cells = [];
  for (const card of find(".card[data-card]")) {
    const all = data.cells[Number(card.dataset.card)];
    const scores = all.flatMap((cell) => cell.scores.filter((score) => score !== null));
    const low = Math.min(...scores), high = Math.max(...scores), room = Math.max(0.02, (high - low) * 0.12);
    for (const figure of find(".cell", card)) {
      const cell = all[Number(figure.dataset.cell)];
      const video = figure.querySelector("video");
      if (!video) continue;
      video.src = blobs[cell.clip];
      const made = { ...cell, video, figure, visible: true,
        box: figure.querySelector(".box"), cursor: figure.querySelector(".cursor"), reading: figure.querySelector(".reading") };
      cells.push(made);
      if (scores.length) {
        const traces = [{ type: "scatter", mode: cell.scores.length > 60 ? "lines" : "lines+markers", x: cell.scores.map((_, at) => at), y: cell.scores,
          line: { color: cell.colour, width: 2 }, marker: { color: cell.colour, size: 4 }, connectgaps: false }];
        draw(figure.querySelector(".line"), traces, { margin: { l: 0, r: 0, t: 2, b: 2 }, showlegend: false,
          xaxis: { visible: false, range: [-0.5, cell.frames - 0.5], fixedrange: true },
          yaxis: { visible: false, range: [low - room, high + room], fixedrange: true } }, true);
      } else figure.querySelector(".strip").hidden = true;
    }
  }

  let playing = false, shownBoxes = false, frame = 0, speed = 1;
  const label = document.getElementById("play-label"), count = document.getElementById("frame");
  const inView = () => cells.filter((cell) => cell.visible && cell.video.readyState > 0);
  const longest = (some) => some.reduce((best, cell) => (!best || cell.frames > best.frames ? cell : best), null);
  const frameOf = (cell) => Math.min(cell.frames - 1, Math.max(0, Math.floor(cell.video.currentTime * cell.rate + 1e-3)));

  function show(cell, at) {
    const now = Math.min(at, cell.frames - 1);
    const score = cell.scores[now], box = cell.boxes ? cell.boxes[now] : null;
    cell.cursor.style.left = `${((now + 0.5) / cell.frames) * 100}%`;
    cell.reading.textContent = score === undefined ? `frame ${now + 1}`
      : `frame ${now + 1}: ${score === null ? "no face" : score.toFixed(3).replace("-", "−")}`;
    cell.box.hidden = !(shownBoxes && box);
    if (shownBoxes && box) {
      const [left, top, right, bottom] = box;
      cell.box.style.left = `${(left / cell.width) * 100}%`;
      cell.box.style.top = `${(top / cell.height) * 100}%`;
      cell.box.style.width = `${((right - left) / cell.width) * 100}%`;
      cell.box.style.height = `${((bottom - top) / cell.height) * 100}%`;
    }
  }

  function showAll(at) {
    frame = at;
    for (const cell of cells) show(cell, at);
    const last = longest(cells);
    count.textContent = last ? `frame ${at + 1} of ${last.frames}` : "";
  }

  const seek = (cell, at) => { cell.video.currentTime = (Math.min(at, cell.frames - 1) + 0.5) / cell.rate; };
  const start = (cell) => { cell.video.playbackRate = speed; cell.video.play().catch(() => {}); };

  function tick() {
    if (!playing) return;
    const some = inView(), leader = longest(some);
    if (leader) {
      if (leader.video.ended || leader.video.currentTime >= leader.video.duration - 1e-3) {
        for (const cell of some) { cell.video.currentTime = 0; start(cell); }
      }
      const time = leader.video.currentTime;
      for (const cell of some) {
        const end = cell.frames / cell.rate;
        if (cell !== leader && time < end && Math.abs(cell.video.currentTime - time) > 1.5 / cell.rate) cell.video.currentTime = time;
        if (cell.video.paused && !cell.video.ended && time < end) start(cell);
      }
      showAll(frameOf(leader));
    }
    requestAnimationFrame(tick);
  }

  function play(on) {
    if (!cells.length) return;
    playing = on;
    label.textContent = on ? "❚❚ Pause" : "▶ Play all";
    if (on) {
      for (const cell of inView()) { if (cell.video.ended) cell.video.currentTime = 0; start(cell); }
      requestAnimationFrame(tick);
    } else {
      for (const cell of cells) { cell.video.pause(); seek(cell, frame); }
    }
  }

  function step(by) {
    const last = longest(cells);
    if (!last) return;
    if (playing) play(false);
    showAll((frame + by + last.frames) % last.frames);
    for (const cell of cells) seek(cell, frame);
  }

  function switchBoxes() {
    shownBoxes = !shownBoxes;
    document.getElementById("boxes").setAttribute("aria-pressed", String(shownBoxes));
    showAll(frame);
  }

  if (document.getElementById("play")) {
    document.getElementById("play").addEventListener("click", () => play(!playing));
    document.getElementById("back").addEventListener("click", () => step(-1));
    document.getElementById("forward").addEventListener("click", () => step(1));
    document.getElementById("boxes").addEventListener("click", switchBoxes);
    document.getElementById("speed").addEventListener("change", (event) => {
      speed = Number(event.target.value);
      for (const cell of cells) cell.video.playbackRate = speed;
    });
    const watcher = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const cell = cells.find((one) => one.figure === entry.target);
        cell.visible = entry.isIntersecting;
        if (!cell.visible) cell.video.pause();
      }
    });
    for (const cell of cells) {
      watcher.observe(cell.figure);
      cell.video.addEventListener("loadedmetadata", () => { if (!playing) seek(cell, frame); }, { once: true });
      cell.video.parentElement.addEventListener("click", () => play(!playing));
    }
    showAll(0);
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("button, select, input, summary, a")) {
      if (event.key === " " || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input")) return;
    }
    const action = { " ": () => play(!playing), ArrowLeft: () => step(-1), ArrowRight: () => step(1), b: switchBoxes, t: switchTheme }[event.key];
    if (!action || (!cells.length && event.key !== "t")) return;
    event.preventDefault();
    action();
  });
})();
