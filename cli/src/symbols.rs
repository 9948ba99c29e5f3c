//! Names for addresses in the hypervisor's image: the file that the build leaves beside it.

/// A line for each function: where it begins and its bytes, both hexadecimal, and its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols(Vec<(u64, u64, String)>);

impl Symbols {
    /// Reads the file. Lines that are none of it are left out.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut symbols: Vec<(u64, u64, String)> = text.lines().filter_map(parse_line).collect();
        symbols.sort();
        Self(symbols)
    }

    /// The function that has the address, and how far in it that is; the address itself where none is known.
    #[must_use]
    pub fn name(&self, address: u64) -> String {
        let before = self.0.partition_point(|(start, ..)| *start <= address);
        let symbol = before.checked_sub(1).and_then(|index| self.0.get(index));
        match symbol {
            Some((start, size, name)) if address - start < *size => {
                format!("{name}+{:#x}", address - start)
            }
            _ => format!("{address:#x}"),
        }
    }
}

fn parse_line(line: &str) -> Option<(u64, u64, String)> {
    let (start, rest) = line.split_once(' ')?;
    let (size, name) = rest.split_once(' ')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(start)?, number(size)?, name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_named_by_the_function_that_has_them() {
        let symbols = Symbols::parse(
            "ffffffff80000020 10 second::<T as U>\nrubbish\nffffffff80000000 8 first\nx y z\n",
        );
        assert_eq!(symbols.name(0xffff_ffff_8000_0000), "first+0x0");
        assert_eq!(symbols.name(0xffff_ffff_8000_0007), "first+0x7");
        assert_eq!(symbols.name(0xffff_ffff_8000_0008), "0xffffffff80000008");
        assert_eq!(symbols.name(0xffff_ffff_8000_002f), "second::<T as U>+0xf");
        assert_eq!(symbols.name(0xffff_ffff_8000_0030), "0xffffffff80000030");
        assert_eq!(symbols.name(0), "0x0");
        assert_eq!(symbols.name(u64::MAX), format!("{:#x}", u64::MAX));
        assert_eq!(Symbols::default().name(16), "0x10");
    }
}
