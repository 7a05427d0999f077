/* The trade-off and the flow of tokens, drawn as SVG as wide as there is room. */

/** Round numbers that part a range in about `count` steps. */
function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((times) => times * power).find((each) => each >= raw);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(at);
  return found;
}

/** From values to pixels: linear, or by logarithms. */
function scale([low, high], [from, to], log = false) {
  const place = log ? Math.log : (value) => value;
  const made = (value) => from + ((place(value) - place(low)) / (place(high) - place(low) || 1)) * (to - from);
  const decades = (list) => list.flatMap((power) => [1, 2, 5].map((times) => times * 10 ** power));
  const range = (a, b) => Array.from({ length: b - a + 1 }, (_, at) => a + at);
  made.ticks = (count) => (log
    ? decades(range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)))).filter((at) => at >= low * 0.999 && at <= high * 1.001)
    : ticks(low, high, count));
  return made;
}

/** A chart that is drawn again when its width changes, with a tip for what the pointer is on. */
function chart(host, draw) {
  const tip = el('div', { class: 'tip', role: 'status', hidden: true });
  const told = {
    show(at, ...lines) {
      tip.replaceChildren(...lines.map((line, place) => el(place ? 'span' : 'b', {}, line)));
      tip.hidden = false;
      const [room, own] = [host.clientWidth, tip.offsetWidth];
      tip.style.left = `${Math.max(4, Math.min(at.x + 14, room - own - 4))}px`;
      tip.style.top = `${at.y - tip.offsetHeight - 12 < 0 ? at.y + 18 : at.y - tip.offsetHeight - 12}px`;
    },
    hide() { tip.hidden = true; },
  };
  let width = 0;
  const paint = () => {
    const focused = host.contains(document.activeElement) ? document.activeElement.dataset.plan : undefined;
    host.replaceChildren(...draw(width, told), tip);
    if (focused !== undefined) host.querySelector(`[data-plan="${focused}"]`)?.focus({ preventScroll: true });
  };
  new ResizeObserver(() => {
    const now = Math.round(host.clientWidth) - 16;
    if (now > 0 && now !== width) { width = now; paint(); }
  }).observe(host);
  return () => width && paint();
}

function axes(width, height, x, y, box, xWords, yWords, xTick, yTick) {
  const lines = [];
  for (const at of y.ticks(5)) {
    lines.push(el('svg:line', { class: 'axis', x1: box.left, x2: width - box.right, y1: y(at), y2: y(at) }));
    lines.push(el('svg:text', { x: box.left - 7, y: y(at) + 4, 'text-anchor': 'end' }, yTick(at)));
  }
  for (const at of x.ticks(Math.max(2, Math.floor(width / 110)))) {
    lines.push(el('svg:text', { x: x(at), y: height - box.bottom + 18, 'text-anchor': 'middle' }, xTick(at)));
  }
  lines.push(el('svg:text', { x: width - box.right, y: height - 3, 'text-anchor': 'end' }, xWords));
  lines.push(el('svg:text', { x: 2, y: 12 }, yWords));
  return lines;
}

function tradeTip(plan) {
  const range = plan.interval ? `, 95% ${short(plan.interval[0])} to ${short(plan.interval[1])}` : '';
  const counts = plan.flow.length ? [plan.flow[0].arriving, ...plan.flow.map((step) => step.leaving)] : [];
  const middle = counts.length > 7 ? [...counts.slice(0, 3), '…', ...counts.slice(-2)] : counts;
  return [
    plan.name + (plan.recommended ? ' (recommended)' : ''), `cost ${percent(plan.cost)}, harm ${harmOf(plan)}${range}`,
    `${plural(plan.sites, 'site')}${counts.length ? `: ${middle.join(' → ')} tokens` : ''}`,
  ];
}

/** Cost against harm, a mark for each plan. */
function tradeChart(host) {
  const drawn = plans.map((plan, place) => ({ plan, place })).filter(({ plan }) => plan.cost !== null && plan.harm !== null);
  if (!drawn.length) return;
  drawn.sort((a, b) => a.plan.cost - b.plan.cost || a.plan.harm - b.plan.harm);
  const costs = drawn.map(({ plan }) => plan.cost);
  const harms = drawn.flatMap(({ plan }) => [plan.harm, ...(plan.front && plan.interval ? plan.interval : [])]).filter((harm) => harm !== null);
  const [most, positive] = [Math.max(...harms), harms.filter((harm) => harm > 0)];
  const log = positive.length === harms.length && most / Math.min(...positive) > 12;
  let reach = state.plan;
  const redraw = chart(host, (width, tip) => {
    const height = Math.round(Math.min(430, Math.max(290, width * 0.46)));
    const box = { left: 52, right: 18, top: 30, bottom: 40 };
    const pad = (Math.max(...costs) - Math.min(...costs)) * 0.05 || 0.02;
    const x = scale([Math.min(...costs) - pad, Math.max(...costs) + pad], [box.left, width - box.right]);
    const domain = log ? [Math.min(...positive) / 1.25, most * 1.25] : [0, most * 1.06 || 1];
    const y = scale(domain, [height - box.bottom, box.top], log);
    const front = drawn.filter(({ plan }) => plan.front);
    const line = front.map(({ plan }, at) => `${at ? 'L' : 'M'}${x(plan.cost)} ${y(plan.harm)}`).join('');
    const marks = [...drawn].sort((a, b) => (a.place === state.plan) - (b.place === state.plan) || a.plan.front - b.plan.front);
    const svg = el('svg:svg', { viewBox: `0 0 ${width} ${height}`, height, role: 'group', 'aria-label': 'Plans by cost and harm: arrow keys go from plan to plan, Enter shows one' });
    svg.append(...axes(width, height, x, y, box, 'cost, of the unreduced model →', `↑ harm${log ? ' (logarithmic)' : ''}`, (at) => `${Math.round(at * 1000) / 10}%`, short));
    svg.append(el('svg:path', { class: 'front-line', d: line }));
    for (const { plan, place } of marks) {
      const at = { x: x(plan.cost), y: y(plan.harm) };
      const told = () => tip.show({ x: at.x + 8, y: at.y + 12 }, ...tradeTip(plan));
      const mark = el('svg:g', {
        class: `mark-point${plan.front || plan.recommended || place === state.plan ? '' : ' back'}`, transform: `translate(${at.x} ${at.y})`,
        tabindex: place === reach ? 0 : -1, role: 'button', 'data-plan': place, 'aria-pressed': String(place === state.plan), 'aria-label': tradeTip(plan).join('; '),
        style: `color: ${colourOf(plan)}`, onpointerenter: told, onfocus: told, onpointerleave: tip.hide, onblur: tip.hide,
        onclick: () => { reach = place; show({ plan: place }); },
        onkeydown: (event) => {
          const next = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
          if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); show({ plan: place }); }
          if (!next) return;
          event.preventDefault();
          const here = drawn.findIndex((each) => each.place === place);
          reach = drawn[(here + next + drawn.length) % drawn.length].place;
          mark.setAttribute('tabindex', -1);
          const other = host.querySelector(`[data-plan="${reach}"]`);
          other.setAttribute('tabindex', 0);
          other.focus();
        },
      });
      if (plan.interval && (plan.front || place === state.plan)) {
        const [low, high] = plan.interval.map((harm) => y(log ? Math.max(harm, domain[0]) : harm) - at.y);
        mark.append(el('svg:path', { class: 'whisker', d: `M0 ${low}V${high}M-3 ${low}H3M-3 ${high}H3`, stroke: 'currentColor' }));
      }
      mark.append(el('svg:path', { class: 'body', d: shapeOf(plan), fill: 'currentColor' }), el('svg:circle', { class: 'ring', r: 10 }), el('svg:circle', { r: 12, fill: 'transparent' }));
      if (place === state.plan) {
        const left = at.x + 20 + 7 * plan.name.length > width;
        mark.append(el('svg:text', { class: 'tag', x: left ? -14 : 14, y: -9, 'text-anchor': left ? 'end' : 'start' }, plan.name));
      }
      svg.append(mark);
    }
    const keys = el('p', { class: 'keys' }, ...methods.map((name) => {
      const plan = plans.find((each) => methodOf(each) === name);
      return el('span', {}, el('svg:svg', { viewBox: '-8 -8 16 16', 'aria-hidden': 'true' }, el('svg:path', { d: shapeOf(plan), style: `fill: ${colourOf(plan)}` })), name === 'several' ? 'several methods' : name);
    }));
    const left = plans.length - drawn.length;
    return [keys, svg, left ? el('p', { class: 'keys' }, `${plural(left, 'plan')} without both numbers: in the table alone`) : ''];
  });
  whenShown(() => { reach = state.plan; redraw(); });
}

/** Tokens block by block: the plan that is shown in front of those of the front. */
function flowChart(host) {
  const drawn = plans.map((plan, place) => ({ plan, place })).filter(({ plan }) => plan.flow.length);
  if (!drawn.length || !report.model.blocks) return;
  const blocks = report.model.blocks;
  const redraw = chart(host, (width, tip) => {
    const [height, box] = [250, { left: 44, right: 18, top: 30, bottom: 40 }];
    const most = Math.max(...drawn.map(({ plan }) => plan.flow[0].arriving));
    const [x, y] = [scale([0, blocks], [box.left, width - box.right]), scale([0, most * 1.04], [height - box.bottom, box.top])];
    const points = (plan) => Array.from({ length: blocks + 1 }, (_, at) => [x(at), y(tokensBehind(plan, at - 1))]);
    const path = (plan) => points(plan).map(([px, py], at) => (at ? `H${px}V${py}` : `M${px} ${py}`)).join('');
    const svg = el('svg:svg', { viewBox: `0 0 ${width} ${height}`, height, role: 'img', 'aria-label': 'Tokens left behind each block; the table below says the same' });
    svg.append(...axes(width, height, x, y, box, 'behind so many blocks →', '↑ tokens', (at) => Math.round(at), (at) => Math.round(at)));
    for (const { plan, place } of drawn.filter((each) => each.plan.front && each.place !== state.plan)) {
      svg.append(el('svg:path', {
        class: 'flow-hit', d: path(plan), onclick: () => show({ plan: place }), onpointerleave: tip.hide,
        onpointermove: (event) => tip.show({ x: event.offsetX, y: event.offsetY + 10 }, ...tradeTip(plan)),
      }), el('svg:path', { class: 'flow-line', d: path(plan) }));
    }
    const shown = plans[state.plan];
    if (shown && shown.flow.length) {
      svg.append(el('svg:path', { class: 'flow-area', d: `${path(shown)}V${y(0)}H${x(0)}Z` }), el('svg:path', { class: 'flow-shown', d: path(shown) }));
      const at = Math.min(state.block + 1, blocks);
      svg.append(el('svg:line', { class: 'now', x1: x(at), x2: x(at), y1: box.top - 6, y2: height - box.bottom }));
      const end = at > blocks * 0.75;
      svg.append(el('svg:text', { class: 'tag', x: x(at) + (end ? -7 : 7), y: box.top + 2, 'text-anchor': end ? 'end' : 'start' }, `${tokensBehind(shown, state.block)} tokens`));
    }
    return [svg];
  });
  whenShown(() => {
    const plan = plans[state.plan];
    byId('flow-caption').textContent = plan && plan.flow.length
      ? `${plan.name}: ${plan.flow[0].arriving} tokens come in, ${plan.flow[plan.flow.length - 1].leaving} are left at the end, ${report.model.protected} of them protected. Grey: other plans of the front.` : '';
    redraw();
  });
}
