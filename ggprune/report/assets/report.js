// Draws the charts of a ggprune report with Observable Plot. Colours are CSS variables, so that
// light, dark and paper need no drawing again; the tables beside the charts hold the same numbers.
"use strict";
(() => {
  const report = JSON.parse(document.getElementById("numbers").textContent);
  const percent = d3.format(".1%");
  const plain = d3.format(",");
  const short = (x) => (x == null ? "–" : d3.format(".3~g")(x));
  const style = { fontSize: "12px", fontFamily: "inherit", background: "none" };
  const series = (i) => `var(--series-${(i % 6) + 1})`;
  // A tick for each layer would overlap when there are many.
  const everyFew = (layers, room) => {
    const step = [1, 2, 5, 10, 20].find((n) => layers.length / n <= room) ?? 50;
    return layers.filter((_, i) => i % step === 0);
  };

  function retained(width) {
    const { layers, limit } = report.retained;
    const known = layers.filter((d) => d.share != null);
    const low = Math.min(...known.map((d) => d.share));
    const floor = Math.max(0, low - (1 - low) * 0.12 - 0.0005);
    return Plot.plot({
      width, height: 264, marginTop: 30, marginLeft: 56, marginBottom: 38, style,
      ariaLabel: "Retained share by layer",
      x: { type: "band", label: "Layer", ticks: everyFew(layers.map((d) => d.layer), width / 28),
           tickSize: 0, padding: layers.length < 12 ? 0.6 : 0.25 },
      y: { domain: [floor, 1], label: "Retained", tickFormat: retainedTicks(1 - floor), ticks: 5,
           grid: true },
      marks: [
        Plot.barY(known, {
          x: "layer", y1: 1, y2: "share", rx: 1.5,
          fill: (d) => (d.low ? "var(--warm)" : "var(--accent)"),
          title: (d) => `Layer ${d.layer}\n${d3.format(".2%")(d.share)} retained\n` +
            `${d3.format(".2%")(1 - d.share)} lost${d.rule ? "\n" + d.rule : ""}`,
          tip: { pointer: "x" },
        }),
        Plot.ruleY([1], { stroke: "currentColor" }),
        limit && floor < limit ? Plot.ruleY([limit], { stroke: "var(--warm)", strokeDasharray: "4 3" }) : null,
      ],
    });
  }
  const retainedTicks = (range) => d3.format(range < 0.004 ? ".2%" : range < 0.04 ? ".1%" : ".0%");

  // A layer's mean sits in the middle of the ramp; four times the mean and more at its end.
  const MOST = 4;
  const ramps = {
    light: { kept: ["#d3e3f2", "#4c93cc", "#0b3a66"], dropped: ["#fbdcc0", "#ee8a3c", "#8f3403"] },
    dark: { kept: ["#1d3145", "#3b86c4", "#c3e2fb"], dropped: ["#452712", "#c4681f", "#ffd0a6"] },
  };
  let sorted = false;

  function cells() {
    const map = report.heat_map;
    const ranks = map.scores.some((row) => row.some((x) => x < 0));
    const shade = (x) => (ranks ? x : Math.sqrt(Math.min(x, MOST) / MOST));
    return map.layers.flatMap((layer, row) => {
      const scores = map.scores[row], dropped = new Set(map.dropped[row]);
      const order = d3.range(scores.length).sort((a, b) => scores[b] - scores[a] || a - b);
      const rank = [];
      order.forEach((expert, i) => { rank[expert] = i; });
      return (sorted ? order : d3.range(scores.length)).map((expert, x) => ({
        x, row, layer, expert, rank: rank[expert] + 1, score: scores[expert],
        count: map.counts[row][expert], tokens: map.tokens[row],
        relative: map.relative[row][expert], ranks,
        dropped: dropped.has(expert), shade: shade(map.relative[row][expert]),
      }));
    });
  }

  function describe(d) {
    const share = d.tokens ? ` (${percent(d.count / d.tokens)})` : "";
    return `Layer ${d.layer}, expert ${d.expert}: ${d.dropped ? "dropped" : "kept"}\n` +
      `score ${short(d.score)}, rank ${d.rank}` +
      (d.ranks ? "" : `, ${short(d.relative)} × the layer's mean`) +
      `\nchosen for ${plain(d.count)} tokens${share}`;
  }

  function heatMap(width) {
    const map = report.heat_map, all = cells();
    const rows = map.layers.length, columns = map.scores[0].length;
    const left = 44, inner = width - left - 8;
    const cell = Math.max(6, Math.min(22, Math.round(340 / rows)));
    const colour = (ramp) => {
      const kept = d3.piecewise(d3.interpolateLab, ramp.kept);
      const dropped = d3.piecewise(d3.interpolateLab, ramp.dropped);
      return all.map((d) => (d.dropped ? dropped : kept)(d.shade));
    };
    const raster = (name) => Plot.raster(colour(ramps[name]), {
      width: columns, height: rows, x1: 0, x2: columns, y1: 0, y2: rows,
      fill: { value: Plot.identity, scale: null }, imageRendering: "pixelated",
    });
    const gap = { stroke: "var(--page)", strokeWidth: 1 };
    const names = everyFew(map.layers, rows * cell / 14);
    const chart = Plot.plot({
      width, height: rows * cell + 56, marginLeft: left, marginRight: 8, marginTop: 18,
      marginBottom: 38, style, ariaLabel: `Scores by layer and expert`,
      x: { domain: [0, columns], label: null, axis: null },
      y: { domain: [rows, 0], label: null, axis: null },
      marks: [
        raster("light"), raster("dark"),
        inner / columns > 5 ? Plot.ruleX(d3.range(columns + 1), gap) : null,
        Plot.ruleY(d3.range(rows + 1), gap),
        Plot.axisY(map.layers.map((_, i) => i + 0.5).filter((_, i) => names.includes(map.layers[i])), {
          label: "Layer", tickSize: 0, tickFormat: (y) => map.layers[Math.floor(y)],
          labelArrow: "none", labelAnchor: "top",
        }),
        Plot.axisX(d3.ticks(0, columns, Math.min(16, inner / 60))
          .filter((x) => Number.isInteger(x) && x < columns).map((x) => x + 0.5), {
          label: sorted ? "Rank in its layer (best first)" : "Expert", tickSize: 0,
          tickFormat: (x) => Math.floor(x) + (sorted ? 1 : 0), labelArrow: "none",
        }),
        Plot.rect(all, Plot.pointer({
          x1: "x", x2: (d) => d.x + 1, y1: "row", y2: (d) => d.row + 1,
          stroke: "currentColor", strokeWidth: 1.5,
        })),
        Plot.tip(all, Plot.pointer({
          x: (d) => d.x + 0.5, y: (d) => d.row + 0.5, title: describe,
        })),
      ],
    });
    // Both are there, and the style sheet shows one: paper is light on a dark screen too.
    chart.querySelectorAll("image").forEach((image, i) => image.classList.add(["light", "dark"][i]));
    return chart;
  }

  function byLayer(field, label, format, extra = {}) {
    return (width) => {
      const { layers, mean } = report.concentration;
      return Plot.plot({
        width, height: 190, marginLeft: 44, marginBottom: 36, style, ariaLabel: label,
        x: { label: "Layer", ticks: everyFew(layers.map((d) => d.layer), width / 36),
             tickFormat: "d", tickSize: 0, inset: 6 },
        y: { zero: true, nice: true, ticks: 4, tickFormat: format, grid: true, label: null,
             ...extra },
        marks: [
          Plot.ruleY([mean[field]], { stroke: "var(--muted)", strokeDasharray: "4 3" }),
          Plot.lineY(layers, { x: "layer", y: field, stroke: "var(--accent)", strokeWidth: 1.5 }),
          Plot.dot(layers, {
            x: "layer", y: field, fill: "var(--accent)", r: 2.2,
            title: (d) => `Layer ${d.layer}\n${format(d[field])}`, tip: { pointer: "x" },
          }),
        ],
      });
    };
  }

  function byDomain(field, error, label, reference) {
    return (width) => {
      const rows = Object.entries(report.evaluation.domains)
        .map(([name, d]) => ({ name, value: d[field], error: d[error] ?? 0 }))
        .filter((d) => d.value != null);
      const whole = report.evaluation[field];
      const longest = Math.max(...rows.map((d) => d.name.length), 4);
      return Plot.plot({
        width, height: rows.length * 26 + 56, marginBottom: 38, style, ariaLabel: label,
        marginLeft: Math.min(150, longest * 7.5 + 14), marginRight: 16,
        x: { label, labelArrow: "none", grid: true, ticks: 5, nice: true, zero: reference == null },
        y: { label: null, tickSize: 0 },
        marks: [
          reference == null ? null : Plot.ruleX([reference], { stroke: "currentColor" }),
          whole == null ? null
            : Plot.ruleX([whole], { stroke: "var(--muted)", strokeDasharray: "4 3" }),
          Plot.ruleY(rows, {
            y: "name", x1: (d) => d.value - d.error, x2: (d) => d.value + d.error,
            stroke: "var(--accent)", strokeWidth: 2,
          }),
          Plot.dot(rows, {
            y: "name", x: "value", fill: "var(--accent)", r: 4.5,
            title: (d) => `${d.name}\n${short(d.value)} ± ${short(d.error)}`, tip: { pointer: "y" },
          }),
        ],
      });
    };
  }

  // 1, 2 and 5 of each power of ten: the ticks of a logarithmic scale that people read.
  const roundSteps = (low, high) =>
    d3.range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)) + 1)
      .flatMap((power) => [1, 2, 5].map((n) => n * 10 ** power))
      .filter((x) => x >= low * 0.999 && x <= high * 1.001);

  // Leaves out counts whose labels would touch the one before.
  function spaced(counts, width) {
    const scale = width / Math.max(1, counts.at(-1) - counts[0]);
    let last = -Infinity;
    return counts.filter((x) => (x - last) * scale > 26 && ((last = x), true));
  }

  function curve(field, label, options) {
    return (width) => {
      const { points, cliffs, keep, methods } = report.sweep;
      const log = options.type === "log";
      const known = points.filter((d) => d[field] != null && (!log || d[field] > 0));
      const colour = (d) => series(methods.indexOf(d.method));
      const breaks = known.filter((d) => cliffs[d.method] === d.keep);
      const counts = d3.sort(new Set(known.map((d) => d.keep)));
      const { reference, ...scale } = options;
      const extent = d3.extent(known, (d) => d[field]);
      const ticks = log ? roundSteps(...extent) : d3.ticks(d3.min([reference, extent[0]]), extent[1], 6);
      return Plot.plot({
        width, height: 270, marginTop: 14, marginLeft: 52, marginRight: 20, marginBottom: 40, style,
        ariaLabel: label,
        x: { label: "Experts kept in each layer", labelArrow: "none", tickSize: 0,
             ticks: spaced(counts, width - 90), tickFormat: "d", inset: 8 },
        y: { label: null, axis: null, ...scale },
        marks: [
          Plot.gridY(ticks),
          // As "text", since a logarithmic scale leaves out some labels of its own ticks.
          Plot.axisY(ticks, { tickSize: 0, text: (x) => d3.format("~g")(x) }),
          reference == null ? null : Plot.ruleY([reference], { stroke: "currentColor" }),
          keep ? Plot.ruleX([keep], { stroke: "var(--muted)", strokeDasharray: "4 3" }) : null,
          keep ? Plot.text([keep], { x: (d) => d, frameAnchor: "top", text: ["this plan"], dx: 5,
            textAnchor: "start", fill: "var(--muted)" }) : null,
          Plot.lineY(known, { x: "keep", y: field, z: "method", sort: "keep", stroke: colour,
            strokeWidth: 1.8 }),
          Plot.dot(breaks, { x: "keep", y: field, r: 8, stroke: colour, strokeWidth: 1.5 }),
          Plot.dot(known, {
            x: "keep", y: field, fill: colour, r: 3.5, tip: true,
            title: (d) => `${d.method}, ${d.keep} experts${d.size ? ", " + d.size : ""}\n` +
              `${label} ${short(d[field])}` +
              (cliffs[d.method] === d.keep ? "\nbelow this count the curve breaks" : ""),
          }),
        ],
      });
    };
  }

  function frontier(width) {
    const points = report.frontier.points.filter((d) => d.kld_mean > 0);
    const counts = d3.sort(new Set(points.map((d) => d.keep)), d3.descending);
    const [unit, name] = d3.max(points, (d) => d.size_bytes) >= 1e9 ? [1e9, "GB"] : [1e6, "MB"];
    const colour = (d) => series(counts.indexOf(d.keep));
    const ticks = roundSteps(...d3.extent(points, (d) => d.kld_mean));
    const at = { x: (d) => d.size_bytes / unit, y: "kld_mean" };
    return Plot.plot({
      width, height: 300, marginTop: 14, marginLeft: 52, marginRight: 20, marginBottom: 40, style,
      ariaLabel: "Mean KL divergence by size",
      x: { label: `Size, ${name}`, labelArrow: "none", tickSize: 0, ticks: width / 90, inset: 8 },
      y: { type: "log", label: null, axis: null },
      marks: [
        Plot.gridY(ticks),
        Plot.axisY(ticks, { tickSize: 0, text: (x) => d3.format("~g")(x) }),
        Plot.lineY(points, { ...at, z: "keep", sort: "size_bytes", stroke: colour }),
        Plot.dot(points, {
          ...at, r: 4, stroke: colour, fill: (d) => (d.on_frontier ? colour(d) : "var(--page)"),
          tip: true,
          title: (d) => `${d.types}, ${d.keep} experts\n${short(d.size_bytes / unit)} ${name}\n` +
            `mean KL divergence ${short(d.kld_mean)}`,
        }),
      ],
    });
  }

  const charts = {
    frontier,
    retained,
    "heat-map": heatMap,
    "top-share": byLayer("top_share", "Share of the largest experts", d3.format(".0%")),
    "experts-for-share": byLayer("experts_for_share", "Experts needed", d3.format("d")),
    gini: byLayer("gini", "Gini coefficient", d3.format(".2f")),
    "kld-by-domain": byDomain("kld_mean", "kld_se", "Mean KL divergence (nats a token)"),
    "ratio-by-domain": byDomain("ppl_ratio", "ppl_ratio_se", "Perplexity ratio", 1),
    "sweep-kld": curve("kld_mean", "Mean KL divergence", { type: "log" }),
    "sweep-ratio": curve("ppl_ratio", "Perplexity ratio", { reference: 1 }),
  };

  function draw(box) {
    const width = Math.max(280, Math.floor(box.clientWidth));
    box.replaceChildren(charts[box.dataset.chart](width));
    box.dataset.width = width;
  }
  const boxes = document.querySelectorAll(".chart");
  boxes.forEach(draw);
  // On paper the drawing scales with the page instead.
  addEventListener("resize", () => boxes.forEach((box) => {
    if (Math.abs(box.clientWidth - box.dataset.width) > 24 && !matchMedia("print").matches) draw(box);
  }));
  document.getElementById("sort")?.addEventListener("click", (event) => {
    sorted = !sorted;
    event.target.textContent = sorted ? "Order by number" : "Order by score";
    boxes.forEach((box) => { if (box.dataset.chart === "heat-map") draw(box); });
  });
})();
