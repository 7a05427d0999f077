/* The page: figures of the plan that is shown, time block by block, the theme, and what can be clicked. */

function figures(host) {
  const figure = (name, value, ...notes) => el('div', {}, el('dt', {}, name), el('dd', {}, value, ...notes.filter(Boolean).map((note) => el('small', {}, note))));
  const bytes = (number) => (number >= 1e9 ? `${(number / 1e9).toFixed(2)} GB` : `${(number / 1e6).toFixed(1)} MB`);
  whenShown(() => {
    const plan = plans[state.plan];
    if (!plan) { host.hidden = true; return; }
    const found = [];
    if (plan.cost !== null) found.push(figure('Cost', percent(plan.cost), `of the unreduced model, ${report.measures.evidence}`));
    if (plan.harms.length || plan.harm !== null) found.push(figure('Mean harm', harmOf(plan), plan.interval && plan.interval[0] !== plan.interval[1] ? `95% ${short(plan.interval[0])} to ${short(plan.interval[1])}, ${plural(plan.harms.length, 'sample')}` : '0: nothing changed'));
    if (plan.flow.length) found.push(figure('Tokens', `${plan.flow[0].arriving} → ${plan.flow[plan.flow.length - 1].leaving}`, `${plural(plan.sites, 'site')}, ${report.model.blocks} blocks`));
    if (plan.time && plan.time.ratio !== null) {
      const { ratio, low, high, evidence } = plan.time;
      found.push(figure('Time', `× ${ratio.toFixed(3)}`, low !== null ? `95% ${low.toFixed(3)} to ${high.toFixed(3)}, ${evidence}` : evidence));
    }
    if (plan.work && report.unreduced) found.push(figure('Peak memory', percent(plan.work.peak / report.unreduced.peak).replace('100.0', '100'), `${bytes(plan.work.peak)} of activations, counted`));
    host.replaceChildren(...found);
  });
}

/** Parts of a model with what the reduction in a block adds beside it. */
function timed(parts) {
  const rows = new Map();
  for (const part of parts) {
    const [name, added] = part.name.split(', reduction');
    const row = rows.get(name) || { name, before: null, after: null, extra: null };
    if (added !== undefined) row.extra = part.after; else Object.assign(row, { before: part.before, after: part.after });
    rows.set(name, row);
  }
  return [...rows.values()];
}

function timeBars(host) {
  whenShown(() => {
    const plan = plans[state.plan];
    if (!plan || !plan.time) {
      const others = plans.map((each, place) => ({ each, place })).filter(({ each }) => each.time);
      host.replaceChildren(el('p', { class: 'missing' }, `Missing. ${plan ? plan.name : 'This plan'} was not timed. Timed: `,
        ...others.flatMap(({ each, place }, at) => [at ? ', ' : '', el('button', { type: 'button', class: 'pick', onclick: () => show({ plan: place }) }, each.name)]), '.'));
      return;
    }
    const { time } = plan;
    const whole = time.ratio === null ? '' : `${plan.name} takes ${time.ratio.toFixed(3)} of the unreduced model's time`
      + (time.low !== null ? ` (95% ${time.low.toFixed(3)} to ${time.high.toFixed(3)})` : '')
      + (time.before !== null && time.after !== null ? `: ${ms(time.after)} instead of ${ms(time.before)}` : '') + '. ';
    const rows = timed(time.parts);
    const most = Math.max(...rows.map((row) => Math.max(row.before || 0, (row.after || 0) + (row.extra || 0))), 1e-9);
    const bar = (kind, value) => (value ? el('i', { class: kind, style: `width: ${(74 * value) / most}%` }) : null);
    host.replaceChildren(
      el('p', { class: 'lead' }, `${whole}${time.evidence === 'measured' ? 'Measured' : `Not measured, ${time.evidence}`}: ${time.where}.`),
      rows.length ? el('p', { class: 'keys' }, ...[['was', 'unreduced'], ['is', 'reduced'], ['extra', 'the reduction itself']].map(([kind, words]) => el('span', { class: 'pair' }, el('div', {}, el('i', { class: kind, style: 'width: 18px; margin: 0' }), words)))) : '',
      rows.length ? el('div', { class: 'rows', role: 'table', 'aria-label': 'Milliseconds by part, under the profiler' }, ...rows.flatMap((row) => [
        el('span', { role: 'rowheader' }, row.name),
        el('div', { class: 'pair', role: 'cell', 'aria-label': `${row.name}: ${ms(row.before) || 'no such part'} before, ${ms(row.after) || 'no such part'} after${row.extra ? `, ${ms(row.extra)} in the reduction` : ''}` },
          el('div', {}, bar('was', row.before), el('small', {}, ms(row.before))),
          el('div', {}, bar('is', row.after), bar('extra', row.extra), el('small', {}, row.extra ? `${ms(row.after)} + ${ms(row.extra)}` : ms(row.after)))),
      ])) : '',
      rows.length ? el('p', { class: 'caption' }, 'Parts are timed under the profiler, whose totals are a little above those of a plain run.') : '',
    );
  });
}

function picker(bar) {
  const choice = byId('plan');
  const order = plans.map((plan, place) => ({ plan, place })).sort((a, b) => b.plan.recommended - a.plan.recommended || b.plan.front - a.plan.front || (a.plan.cost ?? 9) - (b.plan.cost ?? 9));
  choice.append(...order.map(({ plan, place }) => el('option', { value: place }, `${plan.name}${plan.cost === null ? '' : ` · ${percent(plan.cost)}`}${plan.recommended ? ' · recommended' : ''}`)));
  choice.addEventListener('change', () => show({ plan: Number(choice.value) }));
  bar.hidden = false;
  for (const row of document.querySelectorAll('tr[data-plan]')) {
    row.querySelector('.pick').addEventListener('click', () => show({ plan: Number(row.dataset.plan) }));
  }
  whenShown(() => {
    choice.value = state.plan;
    for (const row of document.querySelectorAll('tr[data-plan]')) row.toggleAttribute('aria-current', Number(row.dataset.plan) === state.plan);
  });
}

/** As the system says, or light, or dark: a click goes on to the next. */
function theme(button) {
  const names = ['system', 'light', 'dark'];
  let at = 0;
  button.addEventListener('click', () => {
    at = (at + 1) % names.length;
    if (at) document.documentElement.dataset.theme = names[at]; else delete document.documentElement.dataset.theme;
    button.lastElementChild.textContent = names[at];
    button.setAttribute('aria-label', `Theme: ${at ? names[at] : 'as the system'}`);
  });
}

function copying(button) {
  button.addEventListener('click', async () => {
    const code = button.parentElement.querySelector('code');
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = 'Copied';
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = 'Selected';
    }
    setTimeout(() => { button.textContent = 'Copy'; }, 1600);
  });
}

const PARTS = { theme, figures, picker, 'trade-chart': tradeChart, 'flow-chart': flowChart, 'samples-grid': sampleGrid, 'time-bars': timeBars };
for (const [id, make] of Object.entries(PARTS)) if (byId(id)) make(byId(id));
document.querySelectorAll('.copy').forEach(copying);
