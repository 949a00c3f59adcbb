"use strict";
(() => {
  const dash = "–";

  // Sorting: a button in each heading, so that the keyboard reaches it.
  const addButton = (head, sort) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = head.getAttribute("aria-sort");
      // Numbers begin with the largest, texts with the first of the alphabet.
      const first = head.classList.contains("number") ? "descending" : "ascending";
      const next = order ? (order === "ascending" ? "descending" : "ascending") : first;
      for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", next);
      sort(next === "ascending" ? 1 : -1);
    });
  };
  const isMissing = (value) => value === null || value === undefined || Number.isNaN(value);
  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  // Unknown values stay at the end, whichever way the others are sorted.
  const compare = (a, b, sign) => {
    if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b);
    return sign * (typeof a === "number" ? a - b : collator.compare(a, b));
  };

  const sortable = (table) => {
    const body = table.tBodies[0];
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const isNumber = head.classList.contains("number");
      const read = (row) => {
        const cell = row.cells[column];
        if (!isNumber) return cell.textContent.trim();
        return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
      };
      addButton(head, (sign) => {
        const rows = [...body.rows].sort((a, b) => compare(read(a), read(b), sign));
        body.append(...rows);
      });
    });
  };
  document.querySelectorAll("table.sortable").forEach(sortable);

  // The table of classes: its rows are made when they are shown.
  const shots = ["many", "medium", "few"];
  const step = 100;
  const firstOfMany = 25; // rows of a long table, so that the next section is not far
  const mostInPrint = 1000;
  const number = new Intl.NumberFormat("en");
  const tenths = (value) => (isMissing(value) ? dash : (value / 10).toFixed(1));
  const signed = (value) =>
    isMissing(value) ? dash : ["−", "", "+"][Math.sign(value) + 1] + (Math.abs(value) / 10).toFixed(1);

  const classTable = (card) => {
    const data = JSON.parse(card.querySelector("script").textContent);
    const body = card.querySelector("tbody");
    const heads = [...card.querySelectorAll("thead th")];
    const search = card.querySelector("input");
    const groups = card.querySelector("select.group");
    const methods = card.querySelector("select.method");
    const status = card.querySelector(".status");
    const more = card.querySelector(".more");
    const lower = data.names.map((name) => name.toLowerCase());
    const first = data.methods[0];
    let method = data.methods[data.shown];
    let sorted = { key: "training", sign: -1 };
    const start = data.names.length > step ? firstOfMany : step;
    let limit = start;

    const change = (c) => {
      const [a, b] = [method.accuracy[c], first.accuracy[c]];
      return isMissing(a) || isMissing(b) ? null : a - b;
    };
    const mistakes = (c) => {
      const row = method.mistakes ? method.mistakes[c] : [];
      const parts = [];
      for (let i = 0; i < row.length; i += 2) parts.push(`${data.names[row[i]]} (${row[i + 1]}\u00a0%)`);
      return parts.join(", ");
    };
    const values = {
      name: (c) => data.names[c],
      group: (c) => data.groups[c],
      training: (c) => data.training[c],
      images: (c) => data.images[c],
      before: (c) => first.accuracy[c],
      accuracy: (c) => method.accuracy[c],
      change,
      precision: (c) => (method.precision ? method.precision[c] : null),
      f1: (c) => (method.f1 ? method.f1[c] : null),
      mistakes: (c) => mistakes(c) || null,
    };
    const texts = {
      name: (c) => data.names[c],
      group: (c) => shots[data.groups[c]],
      training: (c) => number.format(data.training[c]),
      images: (c) => number.format(data.images[c]),
      change: (c) => signed(change(c)),
      mistakes: (c) => mistakes(c) || dash,
    };
    const cell = (head, c) => {
      const key = head.dataset.key;
      const made = document.createElement(key === "name" ? "th" : "td");
      if (key === "name") made.scope = "row";
      made.className = head.className;
      if (key === "group") {
        const dot = document.createElement("span");
        dot.className = `dot ${shots[data.groups[c]]}`;
        made.append(dot);
      }
      if (key === "change" && change(c)) made.classList.add(change(c) > 0 ? "better" : "worse");
      made.append(key in texts ? texts[key](c) : tenths(values[key](c)));
      return made;
    };
    const render = () => {
      const words = search.value.trim().toLowerCase();
      const group = groups.value === "" ? null : Number(groups.value);
      const read = values[sorted.key];
      const found = [...data.names.keys()]
        .filter((c) => (!words || lower[c].includes(words)) && (group === null || data.groups[c] === group))
        .sort((a, b) => compare(read(a), read(b), sorted.sign) || a - b);
      body.replaceChildren(
        ...found.slice(0, limit).map((c) => {
          const row = document.createElement("tr");
          row.append(...heads.map((head) => cell(head, c)));
          return row;
        })
      );
      const shown = Math.min(limit, found.length);
      const all = number.format(data.names.length);
      const part = found.length < data.names.length ? `${number.format(found.length)} found of ` : "";
      status.textContent = `${number.format(shown)} shown, ${part}${all} classes.`;
      more.hidden = shown === found.length;
    };
    heads.forEach((head) =>
      addButton(head, (sign) => {
        sorted = { key: head.dataset.key, sign };
        render();
      })
    );
    const again = () => {
      limit = start;
      render();
    };
    search.addEventListener("input", again);
    groups.addEventListener("change", again);
    methods?.addEventListener("change", () => {
      method = data.methods[Number(methods.value)];
      card.querySelector(".of-method").textContent = method.label;
      render();
    });
    card.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
    more.querySelector(".some").addEventListener("click", () => {
      limit += step;
      render();
    });
    more.querySelector(".all").addEventListener("click", () => {
      limit = Infinity;
      render();
    });
    // A printed table has its rows, up to about 25 pages of them.
    let before = limit;
    addEventListener("beforeprint", () => {
      before = limit;
      limit = Math.max(limit, mostInPrint);
      render();
    });
    addEventListener("afterprint", () => {
      limit = before;
      render();
    });
    card.querySelector(".controls").hidden = data.names.length < 2;
    heads.find((head) => head.dataset.key === "training").setAttribute("aria-sort", "descending");
    render();
  };
  document.querySelectorAll(".classes").forEach(classTable);

  // What is folded is printed unfolded.
  const folded = [];
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not([open])")) {
      details.open = true;
      folded.push(details);
    }
  });
  addEventListener("afterprint", () => {
    for (const details of folded.splice(0)) details.open = false;
  });

  // A button that copies code.
  for (const code of document.querySelectorAll(".code pre")) {
    if (!navigator.clipboard) break;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    code.parentElement.querySelector("figcaption").append(button);
  }

  // The section that is read is marked in the navigation.
  const links = new Map(
    [...document.querySelectorAll("nav a[href^='#']")].map((a) => [a.hash.slice(1), a])
  );
  const visible = new Set();
  const watch = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) visible.add(entry.target.id);
        else visible.delete(entry.target.id);
      }
      const current = [...links.keys()].find((name) => visible.has(name));
      links.forEach((link, name) => {
        if (name === current) link.setAttribute("aria-current", "true");
        else link.removeAttribute("aria-current");
      });
    },
    { rootMargin: "-60px 0px -50% 0px" }
  );
  document.querySelectorAll("main > section").forEach((section) => watch.observe(section));
})();
