// Draws the figures of a page; below each of them, and in each table, buttons that save it as a file.
const plots = JSON.parse(document.getElementById('plots').textContent);
const config = {responsive: true, displaylogo: false, displayModeBar: false};

function fileName(title, ending) {
  const words = title.normalize('NFKD').replace(/[^A-Za-z0-9]+/g, '-').replace(/^-+|-+$/g, '').toLowerCase();
  return `${words.slice(0, 60) || 'figure'}.${ending}`;
}

function saveAs(name, kind, parts) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob(parts, {type: kind}));
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// A cell of CSV. Text that a spreadsheet would compute (it begins with = + - @) is marked as text.
function cell(value) {
  if (value === null || value === undefined) return '';
  if (typeof value === 'number') return Number.isFinite(value) ? String(value) : '';
  const text = String(value);
  const safe = /^[=+\-@\t\r]/.test(text) && !Number.isFinite(Number(text)) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function saveCsv(title, rows) {
  saveAs(fileName(title, 'csv'), 'text/csv;charset=utf-8', ['\ufeff', rows.map((row) => row.map(cell).join(',')).join('\r\n'), '\r\n']);
}

// Text of a label, whose characters are written as in HTML, and whose lines are set apart by tags.
function plain(value) {
  if (typeof value !== 'string') return value;
  const lines = value.replace(/<br>/g, '; ').replace(/<\/?b>/g, '');
  return new DOMParser().parseFromString(lines, 'text/html').body.textContent;
}

// One row for each point of each trace; of a matrix, one row for each entry.
function pointsOf(div) {
  const columns = ['trace', 'x', 'y', 'z', 'error_x', 'error_y', 'text'];
  const rows = [];
  div._fullData.forEach((trace, number) => {
    const at = (list, k) => (list && typeof list === 'object' && k in list ? list[k] : null);
    const name = plain(trace.name ?? '') || String(number + 1);
    const {x, y, z} = trace;
    if (z && z.length !== undefined && z[0]?.length !== undefined) {
      for (let i = 0; i < z.length; i++) {
        for (let j = 0; j < z[i].length; j++) {
          const label = trace.customdata?.[i]?.[j] ?? trace.text?.[i]?.[j] ?? null;
          rows.push([name, plain(at(x, j) ?? j), plain(at(y, i) ?? i), z[i][j], null, null, plain(label)]);
        }
      }
      return;
    }
    const length = Math.max(x?.length ?? 0, y?.length ?? 0);
    for (let k = 0; k < length; k++) {
      const px = at(x, k) ?? (x ? null : k), py = at(y, k) ?? (y ? null : k);
      if (px === null && py === null) continue;
      const label = at(trace.hovertext, k) ?? at(trace.text, k);
      rows.push([name, plain(px), plain(py), at(z, k), at(trace.error_x?.array, k), at(trace.error_y?.array, k), plain(label)]);
    }
  });
  const used = columns.map((_, k) => k < 3 || rows.some((row) => row[k] !== null && row[k] !== undefined && row[k] !== ''));
  return [columns, ...rows].map((row) => row.filter((_, k) => used[k]));
}

function buttons(title, actions) {
  const bar = document.createElement('div');
  bar.className = 'save';
  bar.append('Save as ');
  for (const [kind, action] of actions) {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = kind;
    button.setAttribute('aria-label', `Save ${title} as ${kind}`);
    button.addEventListener('click', action);
    bar.append(button);
  }
  return bar;
}

async function saveImage(div, title, format) {
  const url = await Plotly.toImage(div, {format, width: div.clientWidth, height: div.clientHeight, scale: format === 'png' ? 2 : 1});
  const [head, body] = [url.slice(0, url.indexOf(',')), url.slice(url.indexOf(',') + 1)];
  const bytes = head.includes('base64') ? Uint8Array.from(atob(body), (c) => c.charCodeAt(0)) : decodeURIComponent(body);
  saveAs(fileName(title, format), format === 'png' ? 'image/png' : 'image/svg+xml', [bytes]);
}

for (const div of document.querySelectorAll('.plot')) {
  const plot = plots[Number(div.dataset.plot)];
  const title = div.closest('figure').querySelector('h2').textContent;
  Plotly.newPlot(div, plot.data, plot.layout, config);
  const data = () => JSON.stringify({title, data: plot.data, layout: plot.layout}, null, 1);
  div.after(buttons(title, [
    ['PNG', () => saveImage(div, title, 'png')],
    ['SVG', () => saveImage(div, title, 'svg')],
    ['CSV', () => saveCsv(title, pointsOf(div))],
    ['JSON', () => saveAs(fileName(title, 'json'), 'application/json', [data()])],
  ]));
}
for (const table of document.querySelectorAll('details table')) {
  const title = table.closest('details').querySelector('summary').textContent;
  const rows = () => [...table.rows].map((row) => [...row.cells].map((one) => one.textContent));
  table.closest('.scroll').after(buttons(title, [['CSV', () => saveCsv(title, rows())]]));
}
