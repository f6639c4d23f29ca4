//! Header fields as spans into the block of bytes of their head. Changes append to the block and
//! re-point a span.

use bytes::BytesMut;

/// Estimate of how much writing a head adds to the bytes read, in bytes: usually enough.
const LINE: usize = 64;
/// Capacity that a head keeps for the next one, in bytes.
const KEPT_ROOM: usize = 4 * 1024;

/// Header fields in their order.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    block: Vec<u8>,
    spans: Vec<Field>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Field {
    name: Span,
    value: Span,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub start: u32,
    pub length: u32,
}

impl Fields {
    /// Loads the fields of `head`, which they are slices of.
    pub(super) fn load(&mut self, head: &[u8], headers: &[httparse::Header<'_>]) {
        self.block.clear();
        self.block.extend_from_slice(head);
        self.spans.clear();
        self.spans.extend(headers.iter().map(|header| Field {
            name: Span::of(head, header.name.as_bytes()),
            value: Span::of(head, header.value),
        }));
    }

    /// Joins every folded value into one line.
    pub(super) fn unfold(&mut self) {
        for field in &mut self.spans {
            let value = field.value;
            let bytes = &mut self.block[value.start as usize..][..value.length as usize];
            for byte in bytes
                .iter_mut()
                .filter(|byte| matches!(byte, b'\r' | b'\n'))
            {
                *byte = b' ';
            }
            let trimmed = bytes.trim_ascii();
            field.value = Span {
                start: value.start + (bytes.len() - bytes.trim_ascii_start().len()) as u32,
                length: trimmed.len() as u32,
            };
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.block.is_empty()
    }

    /// Frees the capacity of a large head that is no longer used.
    pub fn shrink(&mut self) {
        if self.block.capacity() > KEPT_ROOM {
            *self = Self::default();
        }
    }

    /// Name and value of every field, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.spans
            .iter()
            .map(|field| (self.bytes(field.name), self.bytes(field.value)))
    }

    /// The first value of that name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name.as_bytes()))
            .map(|(_, value)| value)
    }

    /// Keeps the fields for which `keep` returns true.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let block = &self.block;
        self.spans
            .retain(|field| keep(field.name.slice(block), field.value.slice(block)));
    }

    pub fn set(&mut self, name: &str, value: &[u8]) {
        let value = self.append(value);
        let block = &self.block;
        let same = |field: &Field| {
            field
                .name
                .slice(block)
                .eq_ignore_ascii_case(name.as_bytes())
        };
        match self.spans.iter().position(same) {
            Some(first) => {
                self.spans[first].value = value;
                let mut index = 0;
                self.spans.retain(|field| {
                    index += 1;
                    index - 1 <= first || !same(field)
                });
            }
            None => self.push(name, value),
        }
    }

    pub fn add(&mut self, name: &str, value: &[u8]) {
        let value = self.append(value);
        self.push(name, value);
    }

    pub fn remove(&mut self, name: &str) {
        self.retain(|other, _| !other.eq_ignore_ascii_case(name.as_bytes()));
    }

    fn push(&mut self, name: &str, value: Span) {
        let name = self.append(name.as_bytes());
        self.spans.push(Field { name, value });
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Span {
        let start = self.block.len() as u32;
        self.block.extend_from_slice(bytes);
        Span {
            start,
            length: bytes.len() as u32,
        }
    }

    pub(super) fn bytes(&self, span: Span) -> &[u8] {
        span.slice(&self.block)
    }

    /// For spans that were valid text when they were created.
    pub(super) fn text(&self, span: Span) -> &str {
        std::str::from_utf8(self.bytes(span)).unwrap_or_default()
    }

    /// Estimated length of the written head, in bytes: its buffer is reserved at once.
    pub(super) fn room(&self) -> usize {
        self.block.len() + LINE
    }

    pub(super) fn write(&self, out: &mut BytesMut) {
        for field in &self.spans {
            out.extend_from_slice(self.bytes(field.name));
            out.extend_from_slice(match self.is_without_blank(field) {
                true => b":",
                false => b": ",
            });
            out.extend_from_slice(self.bytes(field.value));
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Whether the value follows its colon directly, or is empty and without a space.
    fn is_without_blank(&self, field: &Field) -> bool {
        let colon = field.name.start + field.name.length;
        field.value.start == colon + 1 && self.block.get(colon as usize + 1) != Some(&b' ')
    }
}

impl Span {
    /// The span of `part`, which is a slice of `whole`.
    pub fn of(whole: &[u8], part: &[u8]) -> Self {
        let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
        debug_assert!(start + part.len() <= whole.len());
        Self {
            start: start as u32,
            length: part.len() as u32,
        }
    }

    fn slice(self, block: &[u8]) -> &[u8] {
        block
            .get(self.start as usize..(self.start + self.length) as usize)
            .unwrap_or_default()
    }
}
