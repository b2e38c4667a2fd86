"use strict";
// The browser of responses. Every text goes in as textContent, so that it stays text.
(function () {
  const PAGE = 40;
  const GOOD = {refuse: ["refused"], other: ["answered", "correct"]}, UNCLEAR = ["other", "unparsed"];
  const byId = (id) => document.getElementById(id);
  const form = byId("filters"), list = byId("list"), count = byId("count"), more = byId("more");
  const field = (name) => form.elements.namedItem(name);

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  }

  function make(tag, name, text) {
    const made = document.createElement(tag);
    if (name) made.className = name;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function part(name, text) {
    const made = make("p", "text", text === "" ? "(empty)" : text);
    made.dataset.name = name;
    made.dir = "auto";
    return made;
  }

  function unfold(data) {
    const rows = [];
    for (const a of data.answers) {
      const of = {
        cells: a.cells.map((c) => data.texts[c]), role: data.texts[a.role], benchmark: data.texts[a.benchmark],
        judge: data.texts[a.judge], step: a.step,
      };
      for (let i = 0; i < a.rows.length; i += 3) {
        const item = data.items[a.rows[i]];
        rows.push({
          of, id: data.texts[item[0]], category: data.texts[item[1]], prompt: data.texts[item[2]], target: data.texts[item[3]],
          picture: item[4] === 1, harmful: item[5] === 1, response: data.texts[a.rows[i + 1]], label: data.texts[a.rows[i + 2]],
        });
      }
    }
    return rows;
  }

  function options(name, values) {
    const select = field(name);
    select.append(new Option("all", ""));
    values.forEach((value, i) => select.append(new Option(value, String(i + 1))));
    return () => (select.value === "" ? null : values[Number(select.value) - 1]);
  }

  function card(row) {
    const made = make("li"), meta = make("p", "meta");
    const cells = row.of.cells;
    const who = cells.length === 1 ? cells[0] : cells[0] + " and " + (cells.length - 1) + " more cells";
    meta.append(make("span", "who", row.of.role + " · " + who));
    const good = (row.harmful ? GOOD.refuse : GOOD.other).includes(row.label);
    meta.append(make("span", "label " + (UNCLEAR.includes(row.label) ? "unclear" : good ? "good" : "bad"), row.label));
    meta.append(make("span", "", row.of.benchmark), make("span", "", row.category), make("span", "", row.id));
    if (row.of.step !== null) meta.append(make("span", "", "step " + row.of.step));
    if (row.picture) meta.append(make("span", "", "with a picture"));
    made.append(meta, part("prompt", row.prompt));
    const rest = [part("response", row.response)];
    if (row.target !== "") rest.push(part("expected", row.target));
    if (row.harmful) {
      if (rest.length > 1) rest[1].dataset.name = "what would answer it";
      const fold = make("details");
      fold.append(make("summary", "", "Response to a harmful prompt"), ...rest);
      made.append(fold);
    } else {
      made.append(...rest);
    }
    return made;
  }

  function start(data) {
    const rows = unfold(data), distinct = (values) => Array.from(new Set(values));
    const cells = options("cell", distinct(rows.flatMap((r) => r.of.cells)));
    const wanted = ["role", "benchmark"].map((name) => [name, options(name, distinct(rows.map((r) => r.of[name]))), true]);
    for (const name of ["category", "label"]) wanted.push([name, options(name, distinct(rows.map((r) => r[name])).sort()), false]);
    let found = [], shown = 0;

    function show() {
      list.append(...found.slice(shown, shown + PAGE).map(card));
      shown = Math.min(shown + PAGE, found.length);
      more.hidden = shown >= found.length;
      const some = found.length === rows.length ? "" : " of " + rows.length.toLocaleString("en");
      count.textContent = found.length.toLocaleString("en") + some + " responses" + (shown < found.length ? ", the first " + shown + " shown" : "");
    }

    function filter() {
      const cell = cells(), text = field("text").value.toLowerCase();
      const exact = wanted.map(([name, read, of]) => [name, read(), of]).filter(([, value]) => value !== null);
      found = rows.filter((r) =>
        (cell === null || r.of.cells.includes(cell)) &&
        exact.every(([name, value, of]) => (of ? r.of[name] : r[name]) === value) &&
        (text === "" || r.prompt.toLowerCase().includes(text) || r.response.toLowerCase().includes(text)));
      list.replaceChildren();
      shown = 0;
      show();
    }

    let waiting = 0;
    form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
    form.addEventListener("submit", (event) => event.preventDefault());
    more.addEventListener("click", show);
    form.hidden = false;
    filter();
  }

  // Tables print open; what was folded because it may harm stays folded.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = Array.from(document.querySelectorAll("details.table, #methods details, #missing details")).filter((d) => !d.open);
    opened.forEach((d) => { d.open = true; });
  });
  window.addEventListener("afterprint", () => opened.forEach((d) => { d.open = false; }));

  const fail = (why) => { count.textContent = "The responses could not be read here (" + why + "); the files named above hold the same."; };
  if (typeof DecompressionStream === "undefined") {
    fail("this browser has no DecompressionStream");
  } else {
    unpack(byId("data").textContent).then(start).catch((error) => fail(String(error)));
  }
})();
