"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const report = data.report;
  const names = Object.keys(report.parameters);
  const position = new Map(names.map((name, i) => [name, i]));
  const groupOf = new Map();
  report.groups.forEach((group, i) => group.param_names.forEach((name) => groupOf.set(name, i)));
  const byId = (id) => document.getElementById(id);

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key === "onclick") made.addEventListener("click", value);
      else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  function drawn(tag, attributes, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  function onActivate(target, action) {
    target.addEventListener("click", action);
    target.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        action();
      }
    });
  }

  const number = (value) => {
    if (value === null || value === undefined) return "-";
    if (typeof value === "object") return Object.values(value).map(number).join(" / ");
    return value === 0 ? "0" : String(Number(value.toPrecision(3)));
  };
  const sizes = (shape) => (shape.length ? shape.join(" x ") : "1");
  const bySize = (a, b) => (a === null) - (b === null) || (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  const first = (value) => (value !== null && typeof value === "object" ? Object.values(value)[0] : value);

  // -- copying

  async function copy(value, what) {
    const text = JSON.stringify(value, null, 2);
    let worked = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = element("textarea", { "aria-hidden": "true" });
      area.value = text;
      document.body.append(area);
      area.select();
      worked = document.execCommand("copy");
      area.remove();
    }
    byId("copied").textContent = worked ? `Copied: ${what}, ${text.length.toLocaleString("en")} characters.` : "The browser does not allow copying.";
  }
  byId("copy-all").addEventListener("click", () => copy(report, "the whole report"));

  // -- details

  let chosenBox = null;

  function fact(list, term, description) {
    list.append(element("dt", {}, term), element("dd", { class: "number" }, description));
  }

  function parameterDetails(index) {
    const name = names[index];
    const row = report.parameters[name];
    const fold = data.folds[data.fold_of[index]];
    const told = data.explanations[data.fold_of[index]];
    const facts = element("dl", { class: "facts" });
    const base = data.base_shapes[index];
    fact(facts, "shape", sizes(data.shapes[index]) + (base ? ` (base: ${sizes(base)})` : ""));
    fact(facts, "multiplier", row.void ? "void" : number(row.multiplier));
    fact(facts, "init (RMS entry)", number(row.std));
    fact(facts, "learning rate", groupOf.has(name) ? number(row.lr) : "none (frozen)");
    if (row.eps !== null) fact(facts, "eps", number(row.eps));
    if (row.weight_decay) fact(facts, "weight decay", number(row.weight_decay));
    fact(facts, "exponents a, b, c", `${number(row.a)}, ${number(row.b)}, ${number(row.c)}`);
    if (groupOf.has(name)) fact(facts, "group", `${groupOf.get(name)}, for ${row.optimizer}`);
    const found = [facts];
    if (fold.names.length > 1) {
      const of = told.name === name ? "" : `; what follows is about ${told.name}`;
      found.push(element("p", {}, `${fold.names.length} parameters are alike: ${fold.shown}${of}.`));
    }
    for (const part of told.paragraphs) {
      found.push(element("h4", {}, part.title));
      for (const line of part.lines) {
        found.push(line.is_formula ? element("code", { class: "formula" }, line.text) : element("p", {}, line.text));
      }
    }
    found.push(element("p", { class: "actions" }, element("button", { type: "button", onclick: () => copy({ [name]: row }, name) }, "Copy this row as JSON")));
    return found;
  }

  function showDetails(box, index) {
    const panel = byId("detail");
    const parts = [];
    const member = data.boxes[box];
    if (member) {
      parts.push(element("h3", {}, member.label));
      if (member.path && member.path !== member.label) parts.push(element("p", {}, `In ${member.path}.`));
      const alike = current.stands_for[box] || data.views.flatMap((view) => Object.values(view.stands_for)).find((all) => all.includes(box)) || [box];
      if (alike.length > 1) {
        const select = element("select", {});
        for (const other of alike) {
          const option = element("option", { value: other }, `${data.boxes[other].path || data.boxes[other].label}`);
          option.selected = other === box;
          select.append(option);
        }
        select.addEventListener("change", () => showDetails(Number(select.value), data.boxes[select.value].parameters[0]));
        parts.push(element("p", {}, element("label", {}, `Which of ${alike.length} `, select)));
      }
      parts.push(element("p", {}, member.sub ? `${member.sub}: ${member.words}` : member.words));
      if (member.parameters.length > 1) {
        const list = element("ul", { class: "names" });
        for (const other of member.parameters) {
          const short = names[other].startsWith(`${member.path}.`) ? names[other].slice(member.path.length + 1) : names[other];
          const button = element("button", { type: "button", "aria-pressed": String(other === index), onclick: () => showDetails(box, other) }, short);
          list.append(element("li", {}, button));
        }
        parts.push(list);
      }
    }
    if (index !== undefined) {
      if (!member || member.label !== names[index]) parts.push(element(member ? "h4" : "h3", {}, names[index]));
      parts.push(...parameterDetails(index));
    }
    panel.replaceChildren(...parts);
    panel.scrollTop = 0;
    choose(box);
  }

  // -- graph

  let current = data.views[0];
  const nodes = new Map();

  function shownAs(box) {
    if (nodes.has(box)) return box;
    const found = Object.entries(current.stands_for).find(([, all]) => all.includes(box));
    return found ? Number(found[0]) : null;
  }

  function choose(box) {
    chosenBox = box;
    const shown = shownAs(box);
    for (const [other, node] of nodes) {
      node.classList.toggle("chosen", other === shown);
      node.setAttribute("aria-pressed", String(other === shown));
      node.setAttribute("tabindex", other === (shown ?? current.nodes[0][0]) ? "0" : "-1");
    }
    for (const line of byId("graph").querySelectorAll(".edge")) {
      line.classList.toggle("near", line.dataset.tail === String(shown) || line.dataset.head === String(shown));
    }
  }

  function curve(points) {
    let path = `M${points[0][0]} ${points[0][1]}`;
    for (let i = 1; i < points.length; i += 1) {
      const [[x, y], [to, end]] = [points[i - 1], points[i]];
      path += Math.abs(to - x) < 0.5 ? `L${to} ${end}` : `C${x} ${(y + end) / 2} ${to} ${(y + end) / 2} ${to} ${end}`;
    }
    return path;
  }

  function drawBox([box, x, y, width, height]) {
    const { shown, sub, role, words } = data.boxes[box];
    const isOp = !role;
    const node = drawn("g", { class: "box", role: "button", tabindex: "-1", "aria-pressed": "false", "aria-label": `${shown} ${sub} ${words}` });
    node.append(
      drawn("rect", { x: x - width / 2, y: y - height / 2, width, height, rx: isOp ? height / 2 : 6, class: `tint-${role || "op"}` }),
      drawn("text", { x, y: sub ? y - 3 : y + 4.5, "text-anchor": "middle" }, shown),
    );
    if (sub) node.append(" ", drawn("text", { class: "sub", x, y: y + 13, "text-anchor": "middle" }, sub));
    onActivate(node, () => showDetails(box, data.boxes[box].parameters[0]));
    return node;
  }

  function frameTitle({ title, count, run, place: [left, top], opens }) {
    const frame = drawn("g", { class: "frame" });
    const words = count > 1 ? `${title}  × ${count}` : title;
    frame.append(drawn("text", { x: left + (opens === null ? 10 : 36), y: top + 18 }, words));
    if (opens !== null) {
      const label = count > 1 ? `Draw all ${count} of ${title}` : `Draw ${title} once`;
      const button = drawn("g", { class: "open", role: "button", tabindex: "0", "aria-label": label });
      button.append(drawn("rect", { x: left + 8, y: top + 4, width: 20, height: 20, rx: 4 }));
      button.append(drawn("text", { x: left + 18, y: top + 19 }, count > 1 ? "+" : "−"));
      onActivate(button, () => draw(opens, run));
      frame.append(button);
    }
    return frame;
  }

  function draw(index, run) {
    current = data.views[index];
    const svg = drawn("svg", { width: current.width, height: current.height, viewBox: `0 0 ${current.width} ${current.height}`, role: "group", "aria-label": `${data.boxes.length} boxes, ${current.nodes.length} drawn` });
    const arrow = drawn("marker", { id: "arrow", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto" });
    arrow.append(drawn("path", { class: "arrow", d: "M0 0L8 4L0 8z" }));
    svg.append(drawn("defs", {}, arrow));
    nodes.clear();
    for (const { place: [left, top, width, height] } of current.frames) {
      svg.append(drawn("rect", { class: "around", x: left, y: top, width, height, rx: 10 }));
    }
    for (const [tail, head, points] of current.edges) {
      svg.append(drawn("path", { class: "edge", d: curve(points), "marker-end": "url(#arrow)", "data-tail": tail, "data-head": head }));
    }
    for (const placed of current.nodes) {
      const node = drawBox(placed);
      nodes.set(placed[0], node);
      svg.append(node);
    }
    for (const frame of current.frames) svg.append(frameTitle(frame));
    byId("graph").replaceChildren(svg);
    for (const button of byId("view-buttons").children) button.setAttribute("aria-pressed", String(Number(button.dataset.view) === index));
    choose(chosenBox);
    if (run !== undefined) svg.querySelector(".frame .open")?.focus();
  }

  byId("graph").addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    const order = current.nodes.map(([box]) => box);
    const at = order.findIndex((box) => nodes.get(box) === document.activeElement);
    if (step === undefined || at < 0) return;
    event.preventDefault();
    const next = nodes.get(order[Math.min(order.length - 1, Math.max(0, at + step))]);
    next.focus();
    next.scrollIntoView({ block: "nearest", inline: "nearest" });
  });

  if (data.views.length > 1) {
    const last = data.views.length - 1;
    byId("view-buttons").append(
      element("button", { type: "button", "data-view": 0, onclick: () => draw(0) }, "Repeated blocks once"),
      element("button", { type: "button", "data-view": last, onclick: () => draw(last) }, `All ${data.views[last].nodes.length} boxes`),
    );
  }

  // -- table

  const PAGE = 500;
  const columns = [
    { title: "parameter", left: true, value: (row) => row.shown, is: "name" },
    { title: "x", value: (row) => row.members.length, shown: (row) => (row.members.length > 1 ? row.members.length : "") },
    { title: "role", left: true, value: (row) => row.role, is: "role" },
    { title: "shape", value: (row) => row.entries, shown: (row) => sizes(row.shape) },
    { title: "growth", value: (row) => row.growth.reduce((a, b) => a + b, 0), shown: (row) => row.growth.map(number).join(", ") || "-" },
    ...["a", "b", "c", "multiplier", "std", "lr", "eps", "weight_decay", "r"].map((key) => ({
      title: { weight_decay: "decay" }[key] || key,
      key,
      value: (row) => first(row[key]),
      shown: (row) => (key === "multiplier" && row.void ? "void" : number(row[key])),
    })),
    { title: "binds", left: true, value: (row) => row.binds, shown: (row) => row.binds },
    { title: "group", value: (row) => row.group, shown: (row) => row.group ?? "-" },
  ].filter(({ key }) => !["eps", "weight_decay"].includes(key) || names.some((name) => report.parameters[name][key]));
  let sorting = { column: null, down: false };
  let limit = PAGE;

  function makeRow(shown, members) {
    const name = names[members[0]];
    const stds = members.map((i) => report.parameters[names[i]].std).filter((std) => std !== null);
    const std = stds.length ? stds.reduce((a, b) => a + b, 0) / stds.length : null;
    const shape = data.shapes[members[0]];
    return { ...report.parameters[name], shown, members, std, shape, entries: shape.reduce((a, b) => a * b, 1), binds: data.binds[data.fold_of[members[0]]], group: groupOf.get(name) ?? null };
  }
  const foldedRows = data.folds.map(({ shown, names: members }) => makeRow(shown, members));
  const allRows = names.map((name, i) => makeRow(name, [i]));

  const breakable = (text) => text.split(/(?<=[.}])(?=\.?\w)/).flatMap((part, i) => (i ? [element("wbr"), part] : [part]));

  function cell(column, row) {
    if (column.is === "name") {
      const index = row.members[0];
      const choice = () => {
        showDetails(data.box_of[index], index);
        byId("detail").scrollIntoView({ block: "nearest" });
        byId("detail").focus({ preventScroll: true });
      };
      return element("td", { class: "left" }, element("button", { type: "button", onclick: choice }, ...breakable(row.shown)));
    }
    if (column.is === "role") {
      return element("td", { class: "left" }, element("span", { class: `chip tint-${row.role}` }, row.role));
    }
    return element("td", { class: column.left ? "left" : null }, String(column.shown(row)));
  }

  function fillTable() {
    const wanted = byId("filter-name").value.toLowerCase();
    const [role, group] = [byId("filter-role").value, byId("filter-group").value];
    const source = byId("folded").checked ? foldedRows : allRows;
    const rows = source.filter((row) =>
      (!role || row.role === role) && (!group || String(row.group) === group)
      && (!wanted || row.shown.toLowerCase().includes(wanted) || row.members.some((i) => names[i].toLowerCase().includes(wanted))));
    if (sorting.column !== null) {
      const { value } = columns[sorting.column];
      rows.sort((a, b) => bySize(value(a), value(b)) * (sorting.down ? -1 : 1));
    }
    const body = byId("table").tBodies[0];
    body.replaceChildren(...rows.slice(0, limit).map((row) => element("tr", {}, ...columns.map((column) => cell(column, row)))));
    byId("more").hidden = rows.length <= limit;
    const tensors = rows.reduce((sum, row) => sum + row.members.length, 0);
    byId("count").textContent = `${tensors} of ${names.length} parameters${rows.length > limit ? `, the first ${limit} rows` : ""}`;
    [...byId("table").tHead.rows[0].cells].forEach((head, i) => {
      if (i === sorting.column) head.setAttribute("aria-sort", sorting.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }

  byId("table").tHead.append(element("tr", {}, ...columns.map((column, i) => {
    const sort = () => {
      sorting = { column: i, down: sorting.column === i && !sorting.down };
      fillTable();
    };
    return element("th", { scope: "col", class: column.left ? "left" : null }, element("button", { type: "button", onclick: sort }, column.title));
  })));
  for (const role of new Set(allRows.map((row) => row.role))) byId("filter-role").append(element("option", { value: role }, role));
  report.groups.forEach((_, i) => byId("filter-group").append(element("option", { value: i }, String(i))));
  byId("filters").addEventListener("input", () => {
    limit = PAGE;
    fillTable();
  });
  byId("more").addEventListener("click", () => {
    limit += PAGE;
    fillTable();
  });

  fillTable();
  draw(0);
  const wanted = position.get(decodeURIComponent(location.hash.slice(1)));
  if (wanted !== undefined) showDetails(data.box_of[wanted], wanted);
})();
