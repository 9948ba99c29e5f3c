//! Segment descriptors: from Linux' GDT to base, limit and access rights.
//!
//! SDM, "Segment Descriptors" and "Guest Register State". Only logic; an absent or unusable segment is a value.
#![forbid(unsafe_code)]

/// Access rights: the segment is unusable.
pub const ACCESS_UNUSABLE: u32 = 1 << 16;

/// Segment registers, numbered as in [`gaol_abi::handover::LinuxState::selectors`]; the first six as instructions number
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the manuals'")]
pub enum SegmentRegister {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

impl SegmentRegister {
    /// All of them, in order.
    pub const ALL: [Self; 8] = [
        Self::Es,
        Self::Cs,
        Self::Ss,
        Self::Ds,
        Self::Fs,
        Self::Gs,
        Self::Ldtr,
        Self::Tr,
    ];
}

/// A segment register in full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Access rights: bits 7:0 and 15:12 are bits 47:40 and 55:52 of the descriptor, and [`ACCESS_UNUSABLE`].
    pub access_rights: u32,
}

impl Segment {
    /// A segment that can't be used: a NULL selector was loaded.
    #[must_use]
    pub const fn unusable(selector: u16) -> Self {
        Self {
            selector,
            base: 0,
            limit: 0,
            access_rights: ACCESS_UNUSABLE,
        }
    }

    /// A segment as it is after INIT: base = 16 × selector, limit 64 KiB.
    #[must_use]
    pub const fn real_mode(selector: u16, access_rights: u32) -> Self {
        Self {
            selector,
            base: (selector as u64) << 4,
            limit: 0xffff,
            access_rights,
        }
    }
}

/// The 8 bytes (and the 8 behind them) that `selector` names in a copy of the GDT.
fn entry(table: &[u8], offset: usize) -> Option<u64> {
    let bytes = table.get(offset..offset.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// Reads the segment that `selector` names in `table`, a copy of the GDT. `None`: the selector is outside the table or
/// in a local descriptor table, which is not copied.
#[must_use]
pub fn segment(table: &[u8], selector: u16) -> Option<Segment> {
    if selector & !3 == 0 {
        return Some(Segment::unusable(selector));
    }
    if selector & 4 != 0 {
        return None;
    }
    let offset = usize::from(selector & !7);
    let low = entry(table, offset)?;
    let access = ((low >> 40) & 0xf0ff) as u32;
    let mut base = ((low >> 16) & 0xff_ffff) | ((low >> 56) << 24);
    if access & 0x10 == 0 {
        // A system segment: 16 bytes in IA-32e mode.
        base |= entry(table, offset.checked_add(8)?)? << 32;
    }
    let mut limit = ((low & 0xffff) | ((low >> 32) & 0xf_0000)) as u32;
    if access & 0x8000 != 0 {
        limit = (limit << 12) | 0xfff;
    }
    Some(Segment {
        selector,
        base,
        limit,
        access_rights: access,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Vec<u8> {
        let mut entries = [0u64; 16];
        entries[2] = 0x00af_9b00_0000_ffff; // 64-bit code
        entries[3] = 0x00cf_9300_0000_ffff; // data
        entries[8] = 0xfe00_8b00_3000_206f; // TSS, low half
        entries[9] = 0xffff_ffff;
        entries[12] = 0x12cf_f334_5678_ffff; // TLS
        entries.iter().flat_map(|e| e.to_le_bytes()).collect()
    }

    #[test]
    fn code_data_and_task_segments_are_read() {
        let code = segment(&table(), 0x10).unwrap();
        assert_eq!(
            (code.base, code.limit, code.access_rights),
            (0, u32::MAX, 0xa09b)
        );
        let data = segment(&table(), 0x18).unwrap();
        assert_eq!(data.access_rights, 0xc093);
        let task = segment(&table(), 0x40).unwrap();
        assert_eq!(task.base, 0xffff_ffff_fe00_3000);
        assert_eq!((task.limit, task.access_rights), (0x206f, 0x8b));
        let tls = segment(&table(), 0x63).unwrap();
        assert_eq!(tls.base, 0x1234_5678);
    }

    #[test]
    fn null_selectors_are_unusable_and_foreign_ones_are_refused() {
        for rpl in 0..4 {
            assert_eq!(
                segment(&table(), rpl).unwrap().access_rights,
                ACCESS_UNUSABLE
            );
        }
        assert_eq!(segment(&table(), 0x80), None);
        assert_eq!(segment(&table(), 0x14), None);
    }

    #[test]
    fn any_table_and_selector_is_survived() {
        let table = table();
        for length in 0..table.len() {
            for selector in 0..=0x1ff {
                let _ = segment(&table[..length], selector);
            }
        }
    }
}
