// @ts-check
// The first page: what can be seen here.

import { html, useEffect, useState } from "./vendor/htm-preact.js";
import { api } from "./connection.js";
import { show } from "./shell.js";

function Home() {
  const [server, setServer] = useState(/** @type {any} */ (null));
  useEffect(() => {
    api("/api/server").then(setServer, () => {});
  }, []);
  return html`
    <h1>The geometry of weight space</h1>
    <p class="soft">A network is a point. Train one, shake it, walk with it; look at a set of them as a map.</p>
    <div class="grid">
      <a class="card link" href="/play"><h2>Playground</h2>
        <p>Build a small network, train it, see what every neuron responds to, and press the red button.</p></a>
      <a class="card link" href="/atlas"><h2>Atlas</h2>
        <p>${server === null || server.atlas ? "The networks of this atlas: map, families, who came from whom."
          : "No atlas is open. Start with: weightspace serve FOLDER"}</p></a>
      <a class="card link" href="/reports"><h2>Reports</h2>
        <p>Pages that commands wrote, and jobs that run now.</p></a>
    </div>
    <p></p>
    <p class="soft">${server ? `weightspace ${server.version}` : "\u00a0"}</p>`;
}

show(Home);
