/* Photographs and texts: which patches and words are left, joined or dropped behind each block. */

/** The token of each cell of a sample behind a block, by the number of its first cell; -1 where it was dropped. */
function cellsBehind(changes, cells, block) {
  const found = Int32Array.from({ length: cells }, (_, cell) => cell);
  for (const change of changes) {
    if (change.block <= block) change.cells.forEach((cell, at) => { found[cell] = change.tokens[at]; });
  }
  return found;
}

/** How many cells each token is made of. */
function membersOf(tokens) {
  const found = new Map();
  for (const token of tokens) if (token >= 0) found.set(token, (found.get(token) || 0) + 1);
  return found;
}

function wordsOf(tokens) {
  const members = [...membersOf(tokens).values()];
  const joined = members.filter((count) => count > 1);
  const merged = joined.reduce((sum, count) => sum + count, 0);
  const dropped = tokens.reduce((sum, token) => sum + (token < 0), 0);
  const parts = [`${members.length} of ${tokens.length} left`];
  if (merged) parts.push(`${merged} merged into ${joined.length}`);
  if (dropped) parts.push(`${dropped} dropped`);
  return parts.join(', ');
}

const DARK = 0.16;

/** Draw a photograph with its tokens: joined patches in their mean colour inside an outline, dropped ones dark. */
function drawPatches(canvas, image, tokens, [down, across]) {
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  Object.assign(canvas, { width, height });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const data = context.getImageData(0, 0, width, height);
  const pixels = data.data;
  const members = membersOf(tokens);
  const columns = Int32Array.from({ length: width }, (_, x) => Math.floor((x * across) / width));
  const rows = Int32Array.from({ length: height }, (_, y) => Math.floor((y * down) / height));
  const sums = new Map([...members].filter(([, count]) => count > 1).map(([token]) => [token, [0, 0, 0, 0]]));
  const tokenAt = (x, y) => tokens[rows[y] * across + columns[x]];
  for (let y = 0, at = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, at += 4) {
      const sum = sums.get(tokenAt(x, y));
      if (sum) { sum[0] += pixels[at]; sum[1] += pixels[at + 1]; sum[2] += pixels[at + 2]; sum[3] += 1; }
    }
  }
  const outlined = sums.size > 0;
  for (let y = 0, at = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, at += 4) {
      const token = tokenAt(x, y);
      const sum = sums.get(token);
      if (token < 0) {
        const grey = ((pixels[at] + pixels[at + 1] + pixels[at + 2]) / 3) * DARK;
        pixels[at] = grey; pixels[at + 1] = grey; pixels[at + 2] = grey;
      } else if (sum) for (let part = 0; part < 3; part += 1) pixels[at + part] = sum[part] / sum[3];
      const right = x + 1 < width ? tokenAt(x + 1, y) : token;
      const below = y + 1 < height ? tokenAt(x, y + 1) : token;
      const edge = outlined ? right !== token || below !== token : (right < 0) !== (token < 0) || (below < 0) !== (token < 0);
      if (edge && (outlined ? sum || sums.has(right) || sums.has(below) : true)) {
        for (let part = 0; part < 3; part += 1) pixels[at + part] += 0.72 * (255 - pixels[at + part]);
      }
    }
  }
  context.putImageData(data, 0, 0);
}

/** Words in their order: joined ones underlined in the colour of their token, dropped ones struck through. */
function drawWords(host, words, tokens) {
  const members = membersOf(tokens);
  const groups = [...members].filter(([, count]) => count > 1).map(([token]) => token);
  host.replaceChildren(...words.flatMap((word, cell) => {
    if (word === '[PAD]' || word === '<pad>') return [];
    const token = tokens[cell];
    const joined = members.get(token) > 1;
    const kind = token < 0 ? 'gone' : joined ? 'joined' : 'kept';
    const title = { gone: 'dropped', joined: `one token of ${members.get(token)}`, kept: 'kept' }[kind];
    return [el('span', { class: kind, title, style: joined ? `--group: var(--m${groups.indexOf(token) % 6})` : null }, word), ' '];
  }));
}

function sampleGrid(host) {
  const grid = report.model.grid;
  const views = report.samples.map((sample) => {
    const caption = el('figcaption');
    const body = sample.picture ? el('canvas', { role: 'img' }) : el('p', { class: 'words' });
    host.append(el('figure', {}, body, caption));
    const image = new Image();
    const ready = sample.picture ? new Promise((done) => { image.onload = done; image.src = sample.picture; }) : Promise.resolve();
    return { sample, caption, body, image, ready };
  });
  const [slider, told, none, play] = ['block', 'block-told', 'samples-none', 'play'].map(byId);
  const outputs = plans.some((plan) => plan.flow.some((step) => step.block >= report.model.blocks));
  const last = report.model.blocks - (outputs ? 0 : 1);
  slider.max = last;
  slider.value = Math.min(state.block, last);
  slider.addEventListener('input', () => { stop(); show({ block: Number(slider.value) }); });
  let timer = null;
  function stop() { clearInterval(timer); timer = null; play.textContent = '▶'; play.setAttribute('aria-label', 'Play through the blocks'); }
  play.addEventListener('click', () => {
    if (timer) { stop(); return; }
    play.textContent = '❚❚';
    play.setAttribute('aria-label', 'Stop');
    if (state.block >= last) show({ block: -1 });
    timer = setInterval(() => (state.block >= last ? stop() : show({ block: state.block + 1 })), 420);
  });
  whenShown(() => {
    const plan = plans[state.plan];
    const seen = plan && plan.views.length > 0;
    const block = Math.min(state.block, last);
    slider.value = block;
    const where = block < 0 ? 'before the first block' : block >= report.model.blocks ? 'at the output' : `behind block ${block}`;
    told.textContent = plan && plan.flow.length ? `${where}: ${tokensBehind(plan, block)} of ${report.model.tokens} tokens` : where;
    slider.setAttribute('aria-valuetext', told.textContent);
    none.hidden = Boolean(seen);
    host.hidden = !seen;
    if (!seen) { none.textContent = `Missing. What ${plan ? plan.name : 'it'} does to single tokens was not looked at.`; return; }
    views.forEach(({ sample, caption, body, image, ready }, number) => {
      const cells = sample.picture ? grid.reduce((a, b) => a * b, 1) : sample.words.length;
      const tokens = cellsBehind(plan.views[number] || [], cells, block);
      const words = wordsOf(tokens);
      const harm = plan.harms.length > number && plan.harms[number] !== null ? `, harm ${short(plan.harms[number])}` : '';
      caption.replaceChildren(el('b', {}, sample.name), ` ${words}${harm}`);
      body.setAttribute('aria-label', `${sample.name}, ${where}: ${words}`);
      if (!sample.picture) { drawWords(body, sample.words, tokens); return; }
      const drawnFor = `${state.plan}/${block}`;
      body.dataset.wanted = drawnFor;
      ready.then(() => { if (body.dataset.wanted === drawnFor) drawPatches(body, image, tokens, grid); body.dataset.drawn = drawnFor; });
    });
  });
}
