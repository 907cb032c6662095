// Envelopes and delegation chains (SPEC 6), with the error code of the first fault.

import { decode } from "./msgpack.mjs";
import { base32, sha256, signedBytes, verifies } from "./primitives.mjs";

export const DOMAIN = "ioc/1";
const SKEW_SECONDS = 300;
const LINKS_MAX = 4;
const ROLES = ["national", "regional", "industry", "provider", "consumer"];
const MAY_GRANT = {
  national: ["regional", "industry", "provider", "consumer"],
  regional: ["provider", "consumer"],
  industry: ["provider", "consumer"],
};
const PREFIX = /^((?:[a-z]{2}|p2p)(?:\.(?:n0|r[0-9]{4}|i[a-z0-9]{2,8})(?:\.(?:[0-9]{5}|k[a-z2-7]{52}))?)?)?$/;

export class Fault extends Error {
  constructor(code, detail) {
    super(`error ${code}: ${detail}`);
    this.code = code;
  }
}

/** Whether a decoded array has the shape of an envelope. */
export function isEnvelope(value) {
  return (
    Array.isArray(value) && value.length === 5 && value[0] === DOMAIN && typeof value[1] === "string" &&
    Buffer.isBuffer(value[2]) && value[3]?.length === 32 && value[4]?.length === 64
  );
}

/** The payload of an envelope of this kind, after its signature was found good. */
export function opened(envelope, kind) {
  const [domain, found, payload, key, signature] = envelope;
  if (domain !== DOMAIN || found !== kind) throw new Fault(2, `${domain} ${found}`);
  if (!verifies(key, signature, signedBytes(domain, found, payload))) throw new Fault(3, kind);
  return decode(payload);
}

export function covers(outer, inner) {
  return outer === "" || outer === inner || inner.startsWith(outer + ".");
}

export function selfCertifiedPrefix(key) {
  return "p2p.n0.k" + base32(sha256(key));
}

/**
 * The last delegation of a chain that is valid at `now`; `roots` are hex. With `selfCertified`, as in open networks, the
 * owner of a self-certified prefix may endorse another key for it. Throws the `Fault`.
 */
export function checkChain(chain, { roots, now, selfCertified = false }) {
  if (chain.length < 1 || chain.length > LINKS_MAX) throw new Fault(4, `${chain.length} links`);
  let parent = null;
  for (const envelope of chain) {
    const [subject, prefix, roles, notBefore, notAfter] = opened(envelope, "delegation");
    if (!PREFIX.test(prefix)) throw new Fault(13, prefix);
    if (!roles.every((role) => ROLES.includes(role))) throw new Fault(1, `roles ${roles}`);
    const link = { issuer: envelope[3], subject, prefix, roles, notBefore, notAfter };
    if (parent === null && selfCertified && !roots.includes(link.issuer.toString("hex"))) checkEndorsement(link);
    else checkLink(link, parent, roots);
    if (now > notAfter + SKEW_SECONDS) throw new Fault(7, "a link has ended");
    if (now < notBefore - SKEW_SECONDS) throw new Fault(8, "a link has not begun");
    parent = link;
  }
  return parent;
}

function checkLink(link, parent, roots) {
  if (link.notAfter < link.notBefore) throw new Fault(4, "a link ends before it begins");
  if (parent === null) {
    if (!roots.includes(link.issuer.toString("hex"))) throw new Fault(4, "the first link is not a root's");
    return;
  }
  if (!link.issuer.equals(parent.subject)) throw new Fault(4, "a link is not signed by the subject before it");
  if (!covers(parent.prefix, link.prefix)) throw new Fault(4, `${link.prefix} is outside of ${parent.prefix}`);
  if (link.notBefore < parent.notBefore || link.notAfter > parent.notAfter) throw new Fault(4, "period");
  const grantable = parent.roles.flatMap((role) => MAY_GRANT[role] ?? []);
  if (!link.roles.every((role) => grantable.includes(role))) throw new Fault(4, `roles ${link.roles}`);
}

function checkEndorsement(link) {
  if (link.prefix !== selfCertifiedPrefix(link.issuer)) throw new Fault(4, "neither a root's nor the prefix's owner's");
  if (link.notAfter < link.notBefore) throw new Fault(4, "an endorsement ends before it begins");
  if (link.roles.join() !== "provider") throw new Fault(4, `an endorsement as ${link.roles}`);
}

/** Check a decoded RevocationNews, in an open or a certified network. Throws the `Fault`. */
export function checkRevocation([envelope, chain = []], { roots, now, certified }) {
  const [subject, issued, until] = opened(envelope, "revocation");
  if (now > until + SKEW_SECONDS) throw new Fault(7, "it need not be remembered any more");
  if (now < issued - SKEW_SECONDS) throw new Fault(8, "it was issued in the future");
  const signer = envelope[3];
  if (roots.includes(signer.toString("hex"))) return;
  if (!certified && chain.length === 0 && signer.equals(subject)) return;
  if (chain.length === 0) throw new Fault(14, "no chain is shown");
  const [lastSubject, , , notBefore, notAfter] = opened(chain.at(-1), "delegation");
  const held = Math.min(Math.max(now, notBefore), notAfter);
  checkChain(chain, { roots, now: held, selfCertified: !certified });
  if (!lastSubject.equals(subject)) throw new Fault(14, "the chain ends in another key");
  const granted = chain.some((link) => link[3].equals(signer));
  if (!signer.equals(subject) && !granted) throw new Fault(14, "the signer granted nothing to that key");
  if (until < notAfter) throw new Fault(14, "it ends before the delegation does");
}
