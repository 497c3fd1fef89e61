// The only code between FlexCore and an application's functions. It runs once in a new runtime:
// it takes away what could make the same input give another answer, freezes the rest, and returns
// functions that take and return JSON text, so that one call crosses the border once.
(limits) => {
  "use strict";
  const { parse, stringify } = JSON;
  const { freeze, getPrototypeOf, getOwnPropertyDescriptor, hasOwn } = Object;
  const { isArray } = Array;
  const { ownKeys } = Reflect;
  const PlainFunction = Function.prototype;
  const textOf = PlainFunction.call.bind(PlainFunction.toString);
  const slice = PlainFunction.call.bind(String.prototype.slice);
  const matches = PlainFunction.call.bind(RegExp.prototype.test);
  const CODE = /^[a-z][a-z0-9_]*$/;

  // A rejection is thrown, so that it ends `decide` from however deep.
  class Rejection {
    constructor(code, message) {
      this.code = code;
      this.message = message;
      freeze(this);
    }
  }
  const reject = (code, message = code) => {
    if (typeof code !== "string" || code.length > limits.codeChars || !matches(CODE, code)) {
      throw new TypeError(`reject needs a code such as "not_scheduled"`);
    }
    throw new Rejection(code, slice(`${message}`, 0, limits.messageChars));
  };

  const describe = (error) => {
    try {
      if (error instanceof Rejection) return [`reject(${stringify(error.code)}) outside decide`, ""];
      if (!(error instanceof Error)) return [`threw ${slice(`${stringify(error)}`, 0, limits.messageChars)}`, ""];
      const stack = error.stack;
      return [slice(`${error.name}: ${error.message}`, 0, limits.messageChars), typeof stack === "string" ? stack : ""];
    } catch {
      return ["threw something that cannot be shown", ""];
    }
  };
  const faulty = (at, [message, stack]) => stringify({ faulty: { at, message, stack } });

  const run = (evolve, state, event) => {
    const after = evolve(parse(state), event);
    if (after instanceof Promise) throw new TypeError("evolve returned a promise");
    const text = stringify(after);
    if (text === undefined) throw new TypeError("evolve returned no state");
    return text;
  };

  // A context has its fields and nothing else: a name that is not one of them must not be a silent
  // `undefined`. Its own fields are found before its prototype is asked, so that only a mistake costs.
  const { setPrototypeOf } = Object;
  const strict = new Proxy(freeze({}), {
    get(nothing, name, context) {
      if (typeof name === "symbol" || name === "toJSON" || name in nothing) return nothing[name];
      throw new TypeError(`the context has no ${name}; it has ${ownKeys(context).join(", ")}`);
    },
  });
  delete globalThis.Proxy;

  // Every event is evolved from the text that will be recorded, on a state read from text, so that
  // folding the log later gives the very same state.
  const decide = (decide, evolves) => (state, payload, contextText) => {
    let at = "";
    try {
      const context = setPrototypeOf(parse(contextText), strict);
      const { version } = context;
      const decided = decide(parse(state), parse(payload), context);
      if (decided instanceof Promise) throw new TypeError("decide returned a promise");
      if (!isArray(decided)) throw new TypeError("decide must return a list of events");
      const count = decided.length;
      if (count > limits.events) throw new TypeError(`decide returned ${count} events; at most ${limits.events}`);
      let after = state;
      let events = "";
      for (let i = 0; i < count; i++) {
        const { event, data = {} } = decided[i];
        if (typeof event !== "string" || !hasOwn(evolves, event)) {
          const shown = slice(`${stringify(event)}`, 0, limits.codeChars);
          throw new TypeError(`decide returned the event ${shown}, which is not declared`);
        }
        const text = stringify(data);
        if (text === undefined) throw new TypeError(`the data of ${event} is not JSON`);
        if (events.length + text.length > limits.commitChars) throw new TypeError("the events are too large");
        at = event;
        after = run(evolves[event], after, { event, version: version + i + 1, data: parse(text) });
        at = "";
        events += `${i === 0 ? "" : ","}{"event":"${event}","data":${text}}`;
      }
      return `{"decided":{"events":[${events}],"state":${after}}}`;
    } catch (error) {
      if (at === "" && error instanceof Rejection) return stringify({ rejected: error });
      return faulty(at, describe(error));
    }
  };

  // It folds events of every name, whichever one's `evolve` is asked for.
  const evolve = (_, evolves) => (state, texts) => {
    let at = "";
    try {
      const events = parse(texts);
      let after = state;
      for (let i = 0; i < events.length; i++) {
        at = events[i].event;
        after = run(evolves[at], after, events[i]);
      }
      return `{"folded":${after}}`;
    } catch (error) {
      return faulty(at, describe(error));
    }
  };

  const upcast = (upcast) => (data) => {
    try {
      const text = stringify(upcast(parse(data)));
      if (text === undefined) throw new TypeError("upcast returned nothing");
      return `{"folded":${text}}`;
    } catch (error) {
      return faulty("", describe(error));
    }
  };

  // What is known of a value that should be a function: its text, or `null`, and whether a call
  // returns at once.
  const inspect = (value) => {
    if (typeof value !== "function") return [null, false];
    const plain = getPrototypeOf(value) === PlainFunction;
    freeze(value);
    if (hasOwn(value, "prototype")) freeze(value.prototype);
    return [textOf(value), plain];
  };

  // The engine looks at its deadline in loops of the script, but not in some loops of its own, and
  // `a.length = 4294967295` costs nothing.
  const { apply } = Reflect;
  const guard = (prototype, name, make) => {
    const original = prototype[name];
    const guarded = { [name](...given) { return make(original, this, given); } }[name];
    Object.defineProperty(prototype, name, { value: guarded });
  };
  const small = (list) => {
    if (!isArray(list) || list.length > limits.elements) {
      throw new RangeError(`here only lists of at most ${limits.elements} elements`);
    }
  };
  const onLists = ["copyWithin", "fill", "join", "reverse", "shift", "slice", "sort", "splice", "toLocaleString"];
  onLists.push("toReversed", "toSorted", "toSpliced", "toString", "unshift", "with");
  for (const name of onLists) {
    guard(Array.prototype, name, (original, list, given) => {
      small(list);
      return apply(original, list, given);
    });
  }
  guard(Array.prototype, "concat", (_, list, given) => {
    const all = [];
    for (const more of [list, ...given]) {
      if (isArray(more)) flatten(more, 0, all);
      else all.push(more);
    }
    return all;
  });
  const flatten = (list, depth, into) => {
    small(list);
    for (const each of list) {
      if (depth > 0 && isArray(each)) flatten(each, depth - 1, into);
      else into.push(each);
    }
    return into;
  };
  guard(Array.prototype, "flat", (_, list, [depth = 1]) => flatten(list, +depth, []));
  guard(Array.prototype, "flatMap", (_, list, [change, self]) => {
    small(list);
    return flatten(list.map(change, self), 1, []);
  });
  for (const name of ["includes", "indexOf", "lastIndexOf", "replace", "replaceAll", "split"]) {
    guard(String.prototype, name, (original, self, given) => {
      const text = `${self}`;
      const [sought] = given;
      if ((typeof sought === "object" && sought !== null) || typeof sought === "function") {
        if (!(sought instanceof RegExp)) throw new TypeError(`${name} needs a text or a regular expression`);
      } else if (sought !== undefined && text.length * `${sought}`.length > limits.comparisons) {
        throw new RangeError(`${name} of a text of ${text.length} characters takes too long`);
      }
      return apply(original, text, given);
    });
  }
  // What takes any iterable (`new Set`, `isSupersetOf`, `drop`) asks the engine's own iterators in a
  // loop that does not look at the deadline; it looks at every call of a function like this one.
  const listIterator = getPrototypeOf([][Symbol.iterator]());
  const none = freeze([]);
  const { next } = listIterator;
  const asked = { next() { return apply(next, this, none); } };
  Object.defineProperty(listIterator, "next", { value: asked.next });
  delete Math.random;
  // Accessors that keep what is assigned to them.
  delete Error.prepareStackTrace;
  delete Error.stackTraceLimit;
  // Code may not make code: nobody could find its line, or see it in the definition.
  const samples = [function () {}, function* () {}, async function () {}, async function* () {}];
  for (const sample of samples) delete getPrototypeOf(sample).constructor;
  delete globalThis.eval;
  delete globalThis.Function;
  globalThis.reject = reject;

  const seen = new Set();
  const harden = (value) => {
    if (value === null || (typeof value !== "object" && typeof value !== "function") || seen.has(value)) return;
    seen.add(value);
    for (const key of ownKeys(value)) {
      const property = getOwnPropertyDescriptor(value, key);
      harden(property.value);
      harden(property.get);
      harden(property.set);
    }
    harden(getPrototypeOf(value));
    freeze(value);
  };
  const hidden = [Rejection, [][Symbol.iterator](), new Map()[Symbol.iterator](), new Set()[Symbol.iterator]()];
  hidden.push(""[Symbol.iterator](), "".matchAll(/a/g), samples[1](), samples[3]());
  for (const value of samples.concat(hidden)) harden(value);
  harden(globalThis);
  // A wrapper for each key under which a definition has functions.
  return [{ decide, evolve, upcast }, inspect];
};
