// What wire/SPEC.md builds on, from Node's own crypto: keys as raw bytes in, bytes out.

import crypto from "node:crypto";

const SPKI = { ed25519: "302a300506032b6570032100", x25519: "302a300506032b656e032100" };
const PKCS8 = { ed25519: "302e020100300506032b657004220420", x25519: "302e020100300506032b656e04220420" };
const TAG_BYTES = 16;
const SMALL_ORDER = new Set([
  "00".repeat(32),
  "01" + "00".repeat(31),
  "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
  "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
  "ec" + "ff".repeat(30) + "7f",
  "ed" + "ff".repeat(30) + "7f",
  "ee" + "ff".repeat(30) + "7f",
]);

function publicKey(curve, raw) {
  return crypto.createPublicKey({ key: Buffer.concat([Buffer.from(SPKI[curve], "hex"), raw]), format: "der", type: "spki" });
}

function privateKey(curve, raw) {
  return crypto.createPrivateKey({ key: Buffer.concat([Buffer.from(PKCS8[curve], "hex"), raw]), format: "der", type: "pkcs8" });
}

/** The raw public half of a raw private key. */
export function publicOf(curve, raw) {
  return crypto.createPublicKey(privateKey(curve, raw)).export({ format: "der", type: "spki" }).subarray(-32);
}

export function sha256(...parts) {
  const hash = crypto.createHash("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest();
}

/** RFC 4648, lower case, no padding. */
export function base32(data) {
  let bits = "";
  for (const byte of data) bits += byte.toString(2).padStart(8, "0");
  return bits.match(/.{1,5}/g).map((five) => "abcdefghijklmnopqrstuvwxyz234567"[parseInt(five.padEnd(5, "0"), 2)]).join("");
}

/** What a signature covers (SPEC 6.1). */
export function signedBytes(domain, kind, payload) {
  const parts = [domain, kind].flatMap((text) => [Buffer.from([Buffer.byteLength(text)]), Buffer.from(text)]);
  return Buffer.concat([...parts, payload]);
}

const verified = new Map();

/** Whether an Ed25519 signature is good, and its key no key of small order. The same question is answered once. */
export function verifies(key, signature, data) {
  const name = sha256(key, signature, data).toString("base64");
  if (!verified.has(name)) verified.set(name, isGood(key, signature, data));
  return verified.get(name);
}

function isGood(key, signature, data) {
  const y = Buffer.from(key);
  y[31] &= 0x7f;
  if (SMALL_ORDER.has(y.toString("hex"))) return false;
  try {
    return crypto.verify(null, data, publicKey("ed25519", key), signature);
  } catch {
    return false;
  }
}

export function x25519(privateRaw, publicRaw) {
  return crypto.diffieHellman({ privateKey: privateKey("x25519", privateRaw), publicKey: publicKey("x25519", publicRaw) });
}

export function hkdf(secret, salt, info, size) {
  return Buffer.from(crypto.hkdfSync("sha256", secret, salt, info, size));
}

/** AES-128-GCM with its 16-byte tag at the end; throws unless it is authentic. */
export function open(key, nonce, sealed, associated) {
  const cipher = crypto.createDecipheriv("aes-128-gcm", key, nonce, { authTagLength: TAG_BYTES });
  cipher.setAAD(associated);
  cipher.setAuthTag(sealed.subarray(-TAG_BYTES));
  return Buffer.concat([cipher.update(sealed.subarray(0, -TAG_BYTES)), cipher.final()]);
}

/** A bare Ed25519 signature. */
export function sign(privateRaw, data) {
  return crypto.sign(null, data, privateKey("ed25519", privateRaw));
}

/** AES-128-GCM, the tag of 16 bytes at the end. */
export function seal(key, nonce, plain, associated) {
  const cipher = crypto.createCipheriv("aes-128-gcm", key, nonce, { authTagLength: TAG_BYTES });
  cipher.setAAD(associated);
  return Buffer.concat([cipher.update(plain), cipher.final(), cipher.getAuthTag()]);
}

export function random(size) {
  return crypto.randomBytes(size);
}
