// MessagePack, the reading half: as much of it as the ioc protocol uses, and strict about the rest.
//
// Integers become Numbers (BigInts above 2^53), bin becomes Buffer, maps become plain objects. Truncated input, bytes
// after the value, extension types, text that is no UTF-8 and deep nesting are refused. Nothing is reserved on the
// word of a length: an array's items must lie there before they are read.

const DEPTH_MAX = 64;
const utf8 = new TextDecoder("utf-8", { fatal: true });

export class Malformed extends Error {}

/** Decode exactly one value. */
export function decode(data) {
  const reader = new Reader(data);
  const value = reader.value(0);
  if (reader.at !== data.length) throw new Malformed(`${data.length - reader.at} bytes after the value`);
  return value;
}

class Reader {
  constructor(data) {
    this.data = data;
    this.at = 0;
  }

  take(size) {
    if (size > this.data.length - this.at) throw new Malformed(`truncated at byte ${this.at}`);
    this.at += size;
    return this.data.subarray(this.at - size, this.at);
  }

  uint(size) {
    return this.take(size).readUIntBE(0, size);
  }

  big(signed) {
    const bytes = this.take(8);
    const value = signed ? bytes.readBigInt64BE() : bytes.readBigUInt64BE();
    return BigInt.asIntN(54, value) === value ? Number(value) : value;
  }

  text(size) {
    try {
      return utf8.decode(this.take(size));
    } catch (error) {
      if (error instanceof Malformed) throw error;
      throw new Malformed("text that is not UTF-8");
    }
  }

  array(count, depth) {
    if (count > this.data.length - this.at) throw new Malformed(`an array of ${count} items that are not there`);
    return Array.from({ length: count }, () => this.value(depth));
  }

  map(count, depth) {
    if (2 * count > this.data.length - this.at) throw new Malformed(`a map of ${count} pairs that are not there`);
    const pairs = [];
    for (let n = 0; n < count; n++) {
      const name = this.value(depth);
      if (typeof name !== "string") throw new Malformed("a map whose names are not text");
      pairs.push([name, this.value(depth)]);
    }
    return Object.fromEntries(pairs);
  }

  value(depth) {
    if (depth > DEPTH_MAX) throw new Malformed("nested too deeply");
    const type = this.uint(1);
    if (type < 0x80) return type;
    if (type < 0x90) return this.map(type & 0x0f, depth + 1);
    if (type < 0xa0) return this.array(type & 0x0f, depth + 1);
    if (type < 0xc0) return this.text(type & 0x1f);
    if (type >= 0xe0) return type - 0x100;
    switch (type) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return this.take(this.uint(1));
      case 0xc5: return this.take(this.uint(2));
      case 0xc6: return this.take(this.uint(4));
      case 0xca: return this.take(4).readFloatBE();
      case 0xcb: return this.take(8).readDoubleBE();
      case 0xcc: return this.uint(1);
      case 0xcd: return this.uint(2);
      case 0xce: return this.uint(4);
      case 0xcf: return this.big(false);
      case 0xd0: return this.take(1).readInt8();
      case 0xd1: return this.take(2).readInt16BE();
      case 0xd2: return this.take(4).readInt32BE();
      case 0xd3: return this.big(true);
      case 0xd9: return this.text(this.uint(1));
      case 0xda: return this.text(this.uint(2));
      case 0xdb: return this.text(this.uint(4));
      case 0xdc: return this.array(this.uint(2), depth + 1);
      case 0xdd: return this.array(this.uint(4), depth + 1);
      case 0xde: return this.map(this.uint(2), depth + 1);
      case 0xdf: return this.map(this.uint(4), depth + 1);
      default: throw new Malformed(`type byte 0x${type.toString(16)} is not used here`);
    }
  }
}

/** The writing half, for what a node sends: non-negative integers, text, bytes, arrays, nil, booleans. */
export function encode(value) {
  if (value === null) return Buffer.from([0xc0]);
  if (typeof value === "boolean") return Buffer.from([value ? 0xc3 : 0xc2]);
  if (typeof value === "number") return integer(value);
  if (typeof value === "string") return Buffer.concat([head(Buffer.byteLength(value), [0xa0, 31], 0xd9, 0xda), Buffer.from(value)]);
  if (Buffer.isBuffer(value)) return Buffer.concat([head(value.length, null, 0xc4, 0xc5), value]);
  return Buffer.concat([head(value.length, [0x90, 15], null, 0xdc), ...value.map(encode)]);
}

function integer(value) {
  if (value < 0x80) return Buffer.from([value]);
  const sizes = [[0xcc, 1], [0xcd, 2], [0xce, 4]];
  const [type, size] = sizes.find(([, bytes]) => value < 2 ** (8 * bytes)) ?? [0xcf, 8];
  return Buffer.from(type.toString(16) + value.toString(16).padStart(2 * size, "0"), "hex");
}

function head(length, fixed, short, long) {
  if (fixed !== null && length <= fixed[1]) return Buffer.from([fixed[0] | length]);
  if (short !== null && length < 0x100) return Buffer.from([short, length]);
  if (length >= 0x10000) throw new Error(`${length} do not fit into a datagram`);
  return Buffer.from([long, length >> 8, length & 0xff]);
}
