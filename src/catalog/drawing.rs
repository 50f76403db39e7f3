//! A generated name and picture for an item without an entry in a catalogue: pure functions of the item's id.
//!
//! Owns the hash, the tables of words and the drawings. Invariants: the same id gives the same bytes in every version
//! (browsers cache the picture, shoppers remember the name), so the hash and the tables are fixed; the picture has no script
//! and refers to nothing outside itself. Leaves catalogues and HTTP to others.

use crate::domain::Id;
use std::fmt::Write;

/// The most characters of an id in a generated name and below a picture.
const SHOWN_CHARS: usize = 20;

/// The most characters of a name that fit a picture's width.
const TITLE_CHARS: usize = 24;

// No colours among them: the picture has its own.
const ADJECTIVES: [&str; 32] = [
    "Alpine", "Arctic", "Bold", "Brave", "Bright", "Calm", "Classic", "Cosmic", "Coastal", "Daily", "Electric", "Fine",
    "Gentle", "Grand", "Happy", "Humble", "Lively", "Lucky", "Lunar", "Mellow", "Modern", "Noble", "Nordic", "Quiet",
    "Royal", "Smart", "Solar", "Sunny", "Swift", "Urban", "Velvet", "Vivid",
];

/// A kind of item: nouns for it, and a drawing on a field from (40, 40) to (200, 160). `currentColor` is the item's deep colour.
struct Kind {
    nouns: [&'static str; 3],
    art: &'static str,
}

const KINDS: [Kind; 6] = [
    Kind {
        nouns: ["Sneaker", "Trainer", "Runner"],
        art: r##"<path d="M48 84c5-5 13-5 18 1 6 8 17 10 26 3l12-10c4-3 9-3 12 1l24 29c4 5 10 8 17 9l23 3c10 2 16 9 16 19H46c-4-18-4-38 2-55z" fill="#fff"/><path d="M47 118c20 6 48 8 66 3 12-3 20 1 30 6 12 6 34 6 51 8 1 2 2 4 2 6H46c-1-8-1-16 1-23z" fill="currentColor" opacity=".22"/><path d="M104 98l15-10M113 108l15-10M122 118l15-10" stroke="currentColor" stroke-width="5"/><path d="M58 108c14 6 30 5 42-4" stroke="currentColor" stroke-width="6" fill="none"/><rect x="42" y="138" width="157" height="15" rx="7.5" fill="currentColor"/><path d="M52 145.5h136" stroke="#fff" stroke-width="2" stroke-dasharray="2 7"/>"##,
    },
    Kind {
        nouns: ["Gift Box", "Parcel", "Surprise"],
        art: r##"<path d="M120 74c-12-26-40-30-42-14-1 11 20 16 42 14zm0 0c12-26 40-30 42-14 1 11-20 16-42 14z" fill="none" stroke="currentColor" stroke-width="7"/><rect x="66" y="98" width="108" height="60" rx="5" fill="#fff"/><path d="M66 98h108v9H66z" fill="currentColor" opacity=".22"/><rect x="58" y="74" width="124" height="26" rx="5" fill="#fff"/><path d="M109 74h22v84h-22z" fill="currentColor"/>"##,
    },
    Kind {
        nouns: ["Mug", "Cup", "Coffee Mug"],
        art: r##"<path d="M98 68c-7-9 7-13 0-23M118 68c-7-9 7-13 0-23M138 68c-7-9 7-13 0-23" stroke="#fff" stroke-width="5" fill="none" opacity=".75"/><path d="M155 92h9c26 0 26 42 0 42h-11" fill="none" stroke="#fff" stroke-width="10"/><path d="M76 78h84v60c0 12-8 20-20 20H96c-12 0-20-8-20-20z" fill="#fff"/><path d="M76 100h84v26H76z" fill="currentColor" opacity=".22"/><path d="M118 126c-22-13-13-27-3-24l3 3 3-3c10-3 19 11-3 24z" fill="currentColor"/>"##,
    },
    Kind {
        nouns: ["Headphones", "Headset", "Studio Headset"],
        art: r##"<path d="M66 124v-16c0-74 108-74 108 0v16" fill="none" stroke="#fff" stroke-width="12"/><path d="M77 104c1-55 85-55 86 0" fill="none" stroke="currentColor" stroke-width="3" opacity=".5"/><rect x="54" y="104" width="34" height="52" rx="14" fill="#fff"/><rect x="152" y="104" width="34" height="52" rx="14" fill="#fff"/><rect x="79" y="100" width="15" height="60" rx="7.5" fill="currentColor"/><rect x="146" y="100" width="15" height="60" rx="7.5" fill="currentColor"/>"##,
    },
    Kind {
        nouns: ["Lamp", "Lantern", "Desk Light"],
        art: r##"<path d="M80 104L54 156h132l-26-52z" fill="#fff" opacity=".28"/><path d="M115 100h10v50h-10z" fill="currentColor"/><path d="M98 44h44l24 58H74z" fill="#fff"/><path d="M82 83l-8 19h92l-8-19z" fill="currentColor" opacity=".22"/><rect x="86" y="147" width="68" height="12" rx="6" fill="currentColor"/><circle cx="120" cy="107" r="9" fill="#fff"/>"##,
    },
    Kind {
        nouns: ["Watch", "Timepiece", "Chronograph"],
        art: r##"<path d="M98 72l5-34h34l5 34zM98 126l5 34h34l5-34z" fill="currentColor"/><rect x="161" y="93" width="10" height="13" rx="3" fill="currentColor"/><circle cx="120" cy="99" r="45" fill="#fff"/><circle cx="120" cy="99" r="36" fill="currentColor" opacity=".16"/><path d="M120 67v5M120 126v5M88 99h5M147 99h5" stroke="currentColor" stroke-width="4"/><path d="M120 99V77M120 99l16 10" stroke="currentColor" stroke-width="5"/><circle cx="120" cy="99" r="5" fill="currentColor"/>"##,
    },
];

/// Backgrounds: soft shapes in white on the gradient.
const BACKDROPS: [&str; 4] = [
    r##"<circle cx="206" cy="28" r="74" opacity=".16"/><circle cx="22" cy="150" r="54" opacity=".12"/>"##,
    r##"<path d="M0 92C60 52 110 132 240 62V190H0z" opacity=".15"/><path d="M0 132C80 92 150 162 240 112V190H0z" opacity=".15"/>"##,
    r##"<path d="M-20 60L80-40h36L-20 96zM120 190L240 70v36l-84 84zM60 190L240 10v20L80 190z" opacity=".13"/>"##,
    r##"<circle cx="120" cy="98" r="98" opacity=".12"/><circle cx="120" cy="98" r="72" opacity=".14"/>"##,
];

/// The choices that an id's hash makes.
#[derive(Clone, Copy)]
struct Look {
    adjective: &'static str,
    noun: &'static str,
    art: &'static str,
    backdrop: &'static str,
    hue: u64,
    /// The angle on the colour wheel between the gradient's two colours, in degrees.
    turn: u64,
}

impl Look {
    fn of(id: &Id) -> Look {
        let mut dice = hash(id.as_bytes());
        let mut roll = |sides: u64| {
            let face = dice % sides;
            dice /= sides;
            face as usize
        };
        let adjective = ADJECTIVES.get(roll(32)).copied().unwrap_or_default();
        let kind = KINDS.get(roll(6));
        let noun = kind.and_then(|kind| kind.nouns.get(roll(3)).copied()).unwrap_or_default();
        let backdrop = BACKDROPS.get(roll(4)).copied().unwrap_or_default();
        let art = kind.map(|kind| kind.art).unwrap_or_default();
        Look { adjective, noun, art, backdrop, hue: roll(360) as u64, turn: 25 + roll(45) as u64 }
    }
}

/// FNV-1a with a final mix, since FNV-1a alone leaves the high bits of short ids alike.
fn hash(bytes: &[u8]) -> u64 {
    let sum =
        bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, b| (sum ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    let sum = (sum ^ (sum >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    sum ^ (sum >> 33)
}

/// Hands the pieces of the id's generated name to `push`, in order, so that writing a name allocates nothing.
pub(super) fn name_pieces(id: &Id, mut push: impl FnMut(&str)) {
    let look = Look::of(id);
    let (shown, cut) = shorten(id.as_str(), SHOWN_CHARS);
    for piece in [look.adjective, " ", look.noun, " (", shown, if cut { "…)" } else { ")" }] {
        push(piece);
    }
}

/// A picture of the item `id`, 240 × 240, with `name` and the id (both shortened to fit) written below.
pub fn svg(id: &Id, name: &str) -> String {
    let Look { art, backdrop, hue, turn, .. } = Look::of(id);
    let to = (hue + turn) % 360;
    let mut out = String::with_capacity(3072);
    out.push_str(r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 240 240" width="240" height="240" role="img"><title>"##);
    push_xml(&mut out, name);
    // Writing to a string cannot fail.
    let _ = write!(
        out,
        r##"</title><defs><linearGradient id="g" x1="0" y1="0" x2="1" y2="1"><stop stop-color="hsl({hue},68%,64%)"/><stop offset="1" stop-color="hsl({to},62%,46%)"/></linearGradient><clipPath id="c"><rect width="240" height="240" rx="20"/></clipPath></defs><g clip-path="url(#c)"><rect width="240" height="190" fill="url(#g)"/><g fill="#fff">{backdrop}</g><ellipse cx="120" cy="160" rx="82" ry="7" opacity=".14"/><g color="hsl({hue},55%,30%)" stroke-linecap="round" stroke-linejoin="round">{art}</g><rect y="184" width="240" height="56" fill="#fff"/></g><rect x=".5" y=".5" width="239" height="239" rx="19.5" fill="none" stroke="#000" stroke-opacity=".1"/><g font-family="system-ui,sans-serif" text-anchor="middle"><text x="120" y="208" font-size="15" font-weight="600" fill="hsl({hue},40%,22%)">"##
    );
    push_short(&mut out, title(id, name), TITLE_CHARS);
    let _ = write!(out, r##"</text><text x="120" y="227" font-size="11" fill="hsl({hue},12%,46%)">"##);
    push_short(&mut out, id.as_str(), SHOWN_CHARS);
    out.push_str("</text></g></svg>");
    out
}

/// The part of `name` for the picture's title. A generated name ends with the id, which the line below shows anyway.
fn title<'n>(id: &Id, name: &'n str) -> &'n str {
    let Look { adjective, noun, .. } = Look::of(id);
    let own = adjective.len() + 1 + noun.len();
    match name.split_at_checked(own) {
        Some((own, rest)) if own.starts_with(adjective) && own.ends_with(noun) && rest.starts_with(" (") => own,
        _ => name,
    }
}

fn push_short(out: &mut String, text: &str, chars: usize) {
    let (shown, cut) = shorten(text, chars);
    push_xml(out, shown);
    if cut {
        out.push('…');
    }
}

/// The first `chars` characters, and whether anything was cut off.
fn shorten(text: &str, chars: usize) -> (&str, bool) {
    match text.char_indices().nth(chars) {
        Some((end, _)) => (text.get(..end).unwrap_or(text), true),
        None => (text, false),
    }
}

fn push_xml(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML has no way to write these two.
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
}
