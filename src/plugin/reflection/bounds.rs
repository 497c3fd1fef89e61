//! The cost of a message before it is decoded. One byte on the wire can be a value of 50 bytes in
//! memory and another 70 in JSON, so the length of a message says little about its size.

use prost::{
    DecodeError,
    encoding::{WireType, decode_key, decode_varint},
};
use prost_reflect::{Cardinality, FieldDescriptor, Kind, MessageDescriptor};

use crate::{Error, limits};

/// So many fields that are looked at and not there cost as much as one value.
const FIELDS_A_VALUE: usize = 16;

/// `source_code_info` of `google.protobuf.FileDescriptorProto`: comments and line numbers.
const SOURCE_NUMBER: u32 = 9;

/// The lists in an answer of reflection: its files, its services.
const LIST_NUMBERS: [u32; 2] = [4, 6];

/// Values that may still come.
pub(super) struct Budget {
    limit: usize,
    left: usize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, left: limit }
    }

    /// Counts the values of an encoded message. Fails where they are more than are left, or go
    /// deeper than [`limits::JSON_DEPTH_MAX`], and where the message is cut off.
    pub(super) fn message(&mut self, bytes: &[u8], of: &MessageDescriptor) -> Result<(), Error> {
        self.inside(bytes, of, 1)
    }

    fn spend(&mut self, values: usize) -> Result<(), Error> {
        self.left = self.left.checked_sub(values).ok_or(Error::TooLarge {
            what: "number of values",
            size: self.limit.saturating_add(1),
            limit: self.limit,
        })?;
        Ok(())
    }

    fn inside(
        &mut self,
        mut bytes: &[u8],
        of: &MessageDescriptor,
        depth: usize,
    ) -> Result<(), Error> {
        if depth > limits::JSON_DEPTH_MAX {
            return Err(too_deep(depth));
        }
        self.spend(1 + of.fields().len() / FIELDS_A_VALUE)?;
        while !bytes.is_empty() {
            let (number, wire) = decode_key(&mut bytes).map_err(broken)?;
            let value = take(&mut bytes, wire)?;
            self.spend(1)?;
            if let Some(field) = of.get_field(number) {
                self.field(&field, wire, value, depth)?;
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        field: &FieldDescriptor,
        wire: WireType,
        value: &[u8],
        depth: usize,
    ) -> Result<(), Error> {
        if let Some(oneof) = field.containing_oneof() {
            // Each that is set clears all others.
            self.spend(oneof.fields().len() / FIELDS_A_VALUE)?;
        }
        if wire != WireType::LengthDelimited {
            return Ok(());
        }
        let kind = field.kind();
        if let Kind::Message(message) = &kind {
            return self.inside(value, message, depth + 1);
        }
        if field.cardinality() != Cardinality::Repeated {
            return Ok(());
        }
        match kind.wire_type() {
            WireType::Varint => self.spend(value.iter().filter(|byte| **byte < 0x80).count()),
            WireType::SixtyFourBit => self.spend(value.len() / 8),
            WireType::ThirtyTwoBit => self.spend(value.len() / 4),
            WireType::LengthDelimited | WireType::StartGroup | WireType::EndGroup => Ok(()),
        }
    }
}

/// An encoded `FileDescriptorProto` without its comments and line numbers, which are most of it
/// where they are there, and of no use here.
pub(super) fn without_source(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut kept = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while !rest.is_empty() {
        let from = rest;
        let (number, wire) = decode_key(&mut rest).map_err(broken)?;
        take(&mut rest, wire)?;
        if number != SOURCE_NUMBER {
            kept.extend_from_slice(&from[..from.len() - rest.len()]);
        }
    }
    Ok(kept)
}

/// Counts the files or services in an answer of reflection. Fails where they are more than
/// [`limits::DESCRIPTOR_FILES_MAX`]: an empty one has two bytes here, and twenty times as many in
/// memory.
pub(super) fn lists(answer: &[u8]) -> Result<(), Error> {
    let mut entries = 0_usize;
    fields(answer, |number, value| {
        if !LIST_NUMBERS.contains(&number) {
            return Ok(());
        }
        fields(value, |_, _| {
            entries += 1;
            Error::at_most("number of files or services", entries, limits::DESCRIPTOR_FILES_MAX)
        })
    })
}

/// Shows each field of a message, by its number.
fn fields(
    mut bytes: &[u8],
    mut each: impl FnMut(u32, &[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    while !bytes.is_empty() {
        let (number, wire) = decode_key(&mut bytes).map_err(broken)?;
        each(number, take(&mut bytes, wire)?)?;
    }
    Ok(())
}

/// Takes one value off, and returns its bytes if it has a length.
fn take<'a>(bytes: &mut &'a [u8], wire: WireType) -> Result<&'a [u8], Error> {
    let length = match wire {
        WireType::Varint => {
            decode_varint(bytes).map_err(broken)?;
            0
        }
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        WireType::LengthDelimited => decode_varint(bytes).map_err(broken)?,
        WireType::StartGroup | WireType::EndGroup => {
            return Err(Error::Contract("a message has a group, which is not supported".into()));
        }
    };
    let taken = usize::try_from(length).ok().and_then(|length| bytes.split_at_checked(length));
    let (value, rest) =
        taken.ok_or_else(|| Error::Contract("a message is shorter than it says".into()))?;
    *bytes = rest;
    Ok(value)
}

pub(super) fn broken(error: DecodeError) -> Error {
    Error::Contract(format!("a message cannot be decoded: {error}"))
}

pub(super) fn too_deep(depth: usize) -> Error {
    Error::TooLarge {
        what: "depth of messages in messages",
        size: depth,
        limit: limits::JSON_DEPTH_MAX,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_reflect::{
        DescriptorPool,
        prost_types::{FileDescriptorProto, SourceCodeInfo},
    };

    use super::*;

    fn descriptor(name: &str) -> MessageDescriptor {
        DescriptorPool::global().get_message_by_name(name).unwrap()
    }

    #[test]
    fn each_value_of_a_packed_list_counts() {
        // `SourceCodeInfo.Location.path` is a packed list of int32.
        let location = descriptor("google.protobuf.SourceCodeInfo.Location");
        let mut bytes = vec![0x0a, 100];
        bytes.extend([1; 100]);
        assert!(Budget::new(102).message(&bytes, &location).is_ok());
        let over = Budget::new(101).message(&bytes, &location);
        assert!(matches!(over, Err(Error::TooLarge { limit: 101, .. })), "{over:?}");
    }

    #[test]
    fn depth_has_a_limit() {
        let list = descriptor("google.protobuf.ListValue");
        let nested = |levels: usize| {
            // A list in a value in a list…, each the first field and the sixth in turn.
            (0..levels).fold(Vec::new(), |inner: Vec<u8>, level| {
                let key = if level % 2 == 0 { 0x32 } else { 0x0a };
                let mut outer = vec![key];
                prost::encoding::encode_varint(inner.len() as u64, &mut outer);
                outer.extend(inner);
                outer
            })
        };
        assert!(Budget::new(10_000).message(&nested(98), &list).is_ok());
        let over = Budget::new(10_000).message(&nested(1_000), &list);
        assert!(matches!(over, Err(Error::TooLarge { .. })), "{over:?}");
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let any = descriptor("google.protobuf.Any");
        for bytes in [&[0x0a][..], &[0x0a, 5, 1], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x7f], &[0x0b]] {
            assert!(Budget::new(10).message(bytes, &any).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn the_source_is_left_out() {
        let file = FileDescriptorProto {
            name: Some("a.proto".into()),
            source_code_info: Some(SourceCodeInfo { location: vec![Default::default(); 5] }),
            syntax: Some("proto3".into()),
            ..Default::default()
        };
        let kept = without_source(&file.encode_to_vec()).unwrap();
        let kept = FileDescriptorProto::decode(kept.as_slice()).unwrap();
        assert_eq!(kept, FileDescriptorProto { source_code_info: None, ..file });
    }
}
