//! The state of a guest's processor as both vendors' control blocks hold it, and the two states that guests begin in.
//!
//! General registers but RSP are in the frame of an exit. Segments have the access rights of
//! [`crate::processor::descriptor::Segment`].
#![forbid(unsafe_code)]

use gaol_abi::handover::{HandoverPage, SELECTOR_CS, SELECTOR_LDTR, SELECTOR_TR};
use gaol_abi::outcome::Reason;

use crate::error::Failure;
use crate::launch::saved::Saved;
use crate::processor::cr0;
use crate::processor::descriptor::{Segment, SegmentRegister, segment};
use crate::processor::tables::CODE_SELECTOR;

/// Value of IA32_PAT after reset (SDM, "PAT MSR").
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Base and limit of a descriptor table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
}

/// What a control block holds of the guest, as the guest sees it: no bit that the hypervisor forces is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the registers'")]
pub struct State {
    /// In the order of [`SegmentRegister`].
    pub segments: [Segment; 8],
    pub gdtr: Table,
    pub idtr: Table,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub pat: u64,
    pub debugctl: u64,
    pub dr7: u64,
    /// CS, ESP, EIP.
    pub sysenter: [u64; 3],
    pub rip: u64,
    pub rsp: u64,
    pub rflags: u64,
    /// The processor halts until the hypervisor wakes it.
    pub is_parked: bool,
}

/// Where a guest CPU starts after a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A startup IPI with this vector.
    Vector(u8),
    /// A guest-physical address below 4 GiB, in real mode.
    Address(u32),
    /// Nowhere: the CPU halts and waits for the hypervisor.
    Parked,
}

/// Access rights of segments after INIT (SDM, "IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT").
const RESET_CODE: u32 = 0x9b;
const RESET_DATA: u32 = 0x93;
const RESET_LDT: u32 = 0x82;
const RESET_TASK: u32 = 0x8b;

impl State {
    /// The state after INIT, starting as `start` says.
    #[must_use]
    pub fn after_init(start: Start) -> Self {
        let (base, rip) = match start {
            Start::Vector(vector) => (u64::from(vector) << 12, 0),
            Start::Address(address) => (
                u64::from(address & 0xffff_0000),
                u64::from(address & 0xffff),
            ),
            Start::Parked => (0, 0),
        };
        let data = Segment::real_mode(0, RESET_DATA);
        let code = Segment {
            selector: (base >> 4) as u16,
            base,
            ..Segment::real_mode(0, RESET_CODE)
        };
        let table = Segment::real_mode(0, RESET_LDT);
        let task = Segment::real_mode(0, RESET_TASK);
        let all_64_kib = Table {
            base: 0,
            limit: 0xffff,
        };
        Self {
            segments: [data, code, data, data, data, data, table, task],
            gdtr: all_64_kib,
            idtr: all_64_kib,
            cr0: cr0::CD | cr0::NW | cr0::ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
            pat: PAT_RESET,
            debugctl: 0,
            dr7: 0x400,
            sysenter: [0; 3],
            rip,
            rsp: 0,
            rflags: 2,
            is_parked: start == Start::Parked,
        }
    }

    /// Linux, as the stub and [`Saved`] recorded it, at its first instruction as a guest.
    ///
    /// # Errors
    /// The hardware is at fault when a segment register is not as Linux has it; the detail is the register's number.
    pub fn of_linux(
        page: &HandoverPage,
        saved: &Saved,
        first_instruction: u64,
    ) -> Result<Self, Failure> {
        let state = &page.state;
        let mut segments = [Segment::default(); 8];
        for ((index, selector), target) in state.selectors.iter().enumerate().zip(&mut segments) {
            let refuse = Failure::hardware(Reason::LinuxState, index as u64);
            let loaded = match index {
                SELECTOR_TR => task_segment(*selector, state.task_descriptor),
                SELECTOR_LDTR if selector & !3 == 0 => Some(Segment::unusable(0)),
                SELECTOR_CS if *selector != CODE_SELECTOR => None,
                _ => segment(&page.gdt, *selector),
            };
            *target = loaded.ok_or(refuse)?;
        }
        let [_, _, _, _, fs, gs, ..] = &mut segments;
        fs.base = saved.fs_base;
        gs.base = saved.gs_base;
        Ok(Self {
            segments,
            gdtr: Table {
                base: state.gdtr.base,
                limit: state.gdtr.limit.into(),
            },
            idtr: Table {
                base: state.idtr.base,
                limit: state.idtr.limit.into(),
            },
            cr0: saved.cr0,
            cr3: state.cr3,
            cr4: state.cr4,
            efer: saved.efer,
            pat: saved.pat,
            debugctl: saved.debugctl,
            dr7: saved.dr7,
            sysenter: saved.sysenter,
            rip: first_instruction,
            rsp: state.registers.rsp,
            rflags: 2,
            is_parked: false,
        })
    }

    /// One of its segment registers.
    #[must_use]
    pub fn segment(&self, register: SegmentRegister) -> Segment {
        let segment = self.segments.get(register as usize);
        segment.copied().unwrap_or_default()
    }
}

/// The task register with the descriptor that Linux' TR was loaded from; it is busy.
fn task_segment(selector: u16, [low, high]: [u64; 2]) -> Option<Segment> {
    let mut table = [0u8; 24];
    let [_, target_low, target_high] = table.as_chunks_mut::<8>().0 else {
        return None;
    };
    *target_low = low.to_le_bytes();
    *target_high = high.to_le_bytes();
    let (at, busy) = (8, 2);
    segment(&table, at).map(|loaded| Segment {
        selector,
        access_rights: loaded.access_rights | busy,
        ..loaded
    })
}

#[cfg(test)]
mod tests {
    use gaol_abi::handover::TableRegister;
    use proptest::prelude::*;
    use zerocopy::FromZeros;

    use super::*;
    use crate::processor::descriptor::ACCESS_UNUSABLE;

    /// SDM, "IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT".
    #[test]
    fn after_init_is_as_the_manual_says_but_for_where_it_starts() {
        for start in [
            Start::Parked,
            Start::Vector(0x9a),
            Start::Address(0xffff_fff0),
            Start::Address(0x1234),
        ] {
            let state = State::after_init(start);
            let (base, rip) = match start {
                Start::Parked => (0, 0),
                Start::Vector(vector) => (u64::from(vector) * 0x1000, 0),
                Start::Address(address) => (u64::from(address >> 16) << 16, address & 0xffff),
            };
            let code = state.segment(SegmentRegister::Cs);
            assert_eq!((code.base, state.rip), (base, rip.into()));
            assert_eq!(code.access_rights, 0x9b);
            assert_eq!(state.is_parked, start == Start::Parked);
            for register in SegmentRegister::ALL {
                let segment = state.segment(register);
                assert_eq!(segment.limit, 0xffff);
                let rights = match register {
                    SegmentRegister::Cs => continue,
                    SegmentRegister::Ldtr => 0x82,
                    SegmentRegister::Tr => 0x8b,
                    _ => 0x93,
                };
                let expected = (0, 0, rights);
                let found = (segment.selector, segment.base, segment.access_rights);
                assert_eq!(found, expected, "{register:?}");
            }
            assert_eq!((state.cr0, state.cr4, state.cr3), (0x6000_0010, 0, 0));
            assert_eq!((state.efer, state.debugctl, state.dr7), (0, 0, 0x400));
            assert_eq!((state.rflags, state.rsp), (2, 0));
            assert_eq!(state.pat, 0x0007_0406_0007_0406);
        }
        // A startup IPI gives CS its selector, by which code finds itself.
        let started = State::after_init(Start::Vector(0x9a));
        assert_eq!(started.segment(SegmentRegister::Cs).selector, 0x9a00);
    }

    /// Linux' page and registers: a GDT with code, data and TLS, and a task segment elsewhere.
    fn linux() -> (HandoverPage, Saved) {
        let mut page = HandoverPage::new_zeroed();
        for (index, entry) in [
            (2usize, 0x00af_9b00_0000_ffffu64),
            (3, 0x00cf_9300_0000_ffff),
            (12, 0x12cf_f334_5678_ffff),
        ] {
            page.gdt[index * 8..][..8].copy_from_slice(&entry.to_le_bytes());
        }
        page.state.selectors = [0, 0x10, 0x18, 0, 0x63, 0, 0, 0x40];
        page.state.task_descriptor = [0xfe00_8900_3000_206f, 0xffff_ffff];
        page.state.registers.rsp = 0xffff_c900_0000_1000;
        page.state.cr3 = 0x1000;
        page.state.cr4 = 0x20;
        page.state.gdtr = TableRegister {
            reserved: [0; 3],
            limit: 127,
            base: 0xffff_fe00_0000_1000,
        };
        let saved = Saved {
            cr0: 0x8005_0033,
            efer: 0xd01,
            pat: 7,
            fs_base: 0x7f00_0000_1000,
            gs_base: 0xffff_8880_0000_0000,
            sysenter: [1, 2, 3],
            ..Saved::default()
        };
        (page, saved)
    }

    #[test]
    fn linux_goes_on_with_what_it_had() {
        let (page, saved) = linux();
        let state = State::of_linux(&page, &saved, 0x5000).unwrap();
        let segment = |register| state.segment(register);
        assert_eq!(segment(SegmentRegister::Cs).access_rights, 0xa09b);
        let task = segment(SegmentRegister::Tr);
        assert_eq!((task.selector, task.base), (0x40, 0xffff_ffff_fe00_3000));
        // LTR has made it busy, though the descriptor that it was loaded from may not say so.
        assert_eq!((task.limit, task.access_rights), (0x206f, 0x8b));
        // The bases of FS and GS are the registers', not the descriptors'.
        assert_eq!(segment(SegmentRegister::Fs).base, 0x7f00_0000_1000);
        assert_eq!(segment(SegmentRegister::Fs).access_rights, 0xc0f3);
        assert_eq!(segment(SegmentRegister::Gs).base, 0xffff_8880_0000_0000);
        for unused in [
            SegmentRegister::Es,
            SegmentRegister::Gs,
            SegmentRegister::Ldtr,
        ] {
            assert_eq!(segment(unused).access_rights, ACCESS_UNUSABLE);
        }
        assert_eq!((state.rip, state.rsp), (0x5000, 0xffff_c900_0000_1000));
        assert_eq!(
            (state.cr0, state.cr4, state.efer),
            (0x8005_0033, 0x20, 0xd01)
        );
        assert_eq!(state.sysenter, [1, 2, 3]);
        assert_eq!(
            (state.gdtr.base, state.gdtr.limit),
            (0xffff_fe00_0000_1000, 127)
        );
    }

    proptest! {
        /// A register with a selector that names nothing in the GDT is told by its number.
        #[test]
        fn what_is_not_linux_own_is_refused(register in 0usize..7, selector in 0x80u16..) {
            let (mut page, saved) = linux();
            page.state.selectors[register] = selector | 4;
            let failure = State::of_linux(&page, &saved, 0).unwrap_err();
            prop_assert_eq!(failure.reason(), Reason::LinuxState);
            prop_assert_eq!(failure.detail(), register as u64);
        }
    }
}
