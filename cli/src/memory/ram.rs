//! RAM as /proc/iomem tells it.

/// A range of addresses; `end` is behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: u64,
    end: u64,
}

/// The machine's RAM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ram {
    /// What Linux uses, or could use.
    ranges: Vec<Span>,
    /// What has a name of its own in it: the kernel, and memory that was set aside for a crash.
    named: Vec<Span>,
}

/// Ends of reservations, and their sizes, are multiples of it.
const ALIGNMENT: u64 = 2 << 20;
/// What a reservation leaves to Linux at least.
const LEAST_RAM: u64 = 128 << 20;

impl Ram {
    /// Reads /proc/iomem. Without permission all addresses in it are 0: then there is no RAM.
    #[must_use]
    pub fn parse(iomem: &str) -> Self {
        let mut ram = Self::default();
        let mut in_ram = false;
        for line in iomem.lines() {
            let Some((range, name)) = line.split_once(" : ") else {
                continue;
            };
            let is_inner = range.starts_with(' ');
            let span = range.trim().split_once('-').and_then(|(first, last)| {
                let start = u64::from_str_radix(first, 16).ok()?;
                let last = u64::from_str_radix(last, 16).ok()?;
                let end = last.checked_add(1)?;
                (last > start).then_some(Span { start, end })
            });
            if !is_inner {
                in_ram = name.trim() == "System RAM";
            }
            match span {
                Some(span) if in_ram && is_inner => ram.named.push(span),
                Some(span) if in_ram => ram.ranges.push(span),
                _ => {}
            }
        }
        ram
    }

    /// Whether all of it is RAM, and nothing that has a name.
    #[must_use]
    pub fn is_plain(&self, start: u64, size: u64) -> bool {
        let Some(end) = start.checked_add(size) else {
            return false;
        };
        let is_ram = self
            .ranges
            .iter()
            .any(|range| range.start <= start && end <= range.end);
        is_ram && self.named_in(start, end).is_none()
    }

    fn named_in(&self, start: u64, end: u64) -> Option<&Span> {
        self.named
            .iter()
            .find(|span| span.start < end && start < span.end)
    }

    /// The highest address in a range at which `size` bytes are free of names.
    fn place_in(&self, range: &Span, size: u64) -> Option<u64> {
        let mut end = range.end;
        loop {
            let start = end.checked_sub(size)? & !(ALIGNMENT - 1);
            // The first MiB is not for reservations.
            if start < range.start.max(1 << 20) {
                return None;
            }
            match self.named_in(start, start.checked_add(size)?) {
                None => return Some(start),
                Some(named) => end = named.start,
            }
        }
    }
}

/// An address for a reservation of `size` bytes: at the end of RAM that is large enough to lose it, below 4 GiB where
/// that does not take too much of it. `None` where no RAM is, or Linux would have too little left.
#[must_use]
pub fn place_for_reservation(iomem: &str, size: u64) -> Option<u64> {
    let ram = Ram::parse(iomem);
    let total: u64 = ram.ranges.iter().map(|range| range.end - range.start).sum();
    if size == 0 || total.checked_sub(size)? < LEAST_RAM {
        return None;
    }
    let is_low = |range: &Span| range.end <= 1 << 32;
    let places = |wanted: &dyn Fn(&Span) -> bool| {
        ram.ranges
            .iter()
            .rev()
            .filter(|range| wanted(range))
            .find_map(|range| ram.place_in(range, size))
    };
    places(&|range| is_low(range) && (range.end - range.start) / 4 >= size)
        .or_else(|| places(&|range| !is_low(range)))
        .or_else(|| places(&is_low))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IOMEM: &str = "\
00000000-00000fff : Reserved
00001000-0009efff : System RAM
00100000-3ffeffff : System RAM
  01000000-01e0ffff : Kernel code
  38000000-3fffefff : Crash kernel
3fff0000-3fffffff : ACPI Tables
  3fff1000-3fff1fff : inner
100000000-13fffffff : System RAM
";

    #[test]
    fn reservations_are_ram_that_nobody_has_named() {
        let place = |size| place_for_reservation(IOMEM, size);
        assert_eq!(place(4 << 20), Some(0x37c0_0000));
        assert_eq!(place(300 << 20), Some(0x1_2d40_0000));
        assert_eq!(place(1 << 30), Some(0x1_0000_0000));
        assert_eq!(place((1 << 30) + (2 << 20)), None);
        assert_eq!(place(0), None);
        assert_eq!(place(u64::MAX), None);
    }

    #[test]
    fn without_ram_there_is_no_place() {
        for text in [
            "",
            "garbage",
            "00000000-00000000 : System RAM\n",
            "00100000-3ffeffff : Reserved\n",
            "00100000-07ffffff : System RAM\n",
            "1-ffffffffffffffff : System RAM\n",
            "x-y : System RAM\n",
        ] {
            assert_eq!(place_for_reservation(text, 4 << 20), None, "{text}");
        }
    }

    #[test]
    fn plain_ram_has_no_names_in_it() {
        let ram = Ram::parse(IOMEM);
        assert!(ram.is_plain(0x0800_0000, 128 << 20));
        assert!(!ram.is_plain(0, 128 << 20));
        assert!(!ram.is_plain(0x3800_0000, 128 << 20));
        assert!(!ram.is_plain(0x100_0000, 4096));
        assert!(!ram.is_plain(u64::MAX - 4095, 8192));
        assert!(!ram.is_plain(0x3fff_0000, 4096));
    }
}
