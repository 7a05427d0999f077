/* What every part of the page uses: the document, elements, numbers, and which plan and block are shown. */
'use strict';

const report = JSON.parse(document.getElementById('document').textContent);
const plans = report.entries;
const SVG = 'http://www.w3.org/2000/svg';

/** An element with attributes and children; those of SVG by a name that begins with "svg:". */
function el(name, attributes = {}, ...children) {
  const made = name.startsWith('svg:') ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? '' : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const byId = (id) => document.getElementById(id);
const percent = (share) => (share === null ? 'not known' : `${(100 * share).toFixed(1)}%`);
const short = (number) => (number === null ? 'not finite' : Number(number.toPrecision(3)).toString());
/** The harm of a plan; JSON holds no infinity, so that one which was measured and is null was not finite. */
const harmOf = (plan) => (plan.harm === null && !plan.harms.length ? 'not measured' : short(plan.harm));
const ms = (number) => (number === null ? '' : `${number.toFixed(number < 10 ? 2 : 1)} ms`);
const plural = (count, word) => `${count} ${word}${count === 1 ? '' : 's'}`;

/** Tokens behind a block under a plan; -1 is before the first block. */
function tokensBehind(plan, block) {
  const behind = plan.flow.filter((step) => step.block <= block);
  return behind.length ? behind[behind.length - 1].leaving : plan.flow.length ? plan.flow[0].arriving : report.model.tokens;
}

/** The methods of a plan, or its own name where it does not say. */
function methodOf(plan) {
  const names = [...new Set(plan.flow.map((step) => step.method).filter(Boolean))];
  return names.length > 1 ? 'several' : names[0] || 'plan';
}
const methods = [...new Set(plans.map(methodOf))].sort((a, b) => (a === 'several') - (b === 'several') || a.localeCompare(b));
const colourOf = (plan) => `var(--m${Math.min(methods.indexOf(methodOf(plan)), 5)})`;
const SHAPES = [
  'M5.5 0A5.5 5.5 0 1 1-5.5 0A5.5 5.5 0 1 1 5.5 0Z', 'M-5-5H5V5H-5Z', 'M0-6.5L6 5H-6Z', 'M0-6.8L6.8 0L0 6.8L-6.8 0Z',
  'M0 6.5L6-5H-6Z', 'M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z',
];
const shapeOf = (plan) => SHAPES[Math.min(methods.indexOf(methodOf(plan)), SHAPES.length - 1)];

const state = { plan: report.shown, block: report.model.blocks - 1, listeners: [] };
/** Call `draw` now, and whenever another plan or block is shown. */
function whenShown(draw) { state.listeners.push(draw); draw(); }
function show(change) {
  Object.assign(state, change);
  for (const draw of state.listeners) draw();
}
