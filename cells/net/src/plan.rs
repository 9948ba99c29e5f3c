//! What the command line says.

use core::net::Ipv4Addr;

use gaol_cell::arguments::Arguments;
use gaol_cell::pci::Function;
use gaol_devices::e1000::Interrupts;

/// How the cell learns of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It looks all the time.
    Poll,
    /// By a message.
    Msi,
    /// By an entry of the card's table of messages.
    MsiX,
    /// By an interrupt line.
    Line,
}

impl Mode {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Msi => "msi",
            Self::MsiX => "msix",
            Self::Line => "intx",
        }
    }

    /// What that means for the card.
    pub const fn interrupts(self) -> Interrupts {
        match self {
            Self::Poll => Interrupts::None,
            Self::Msi | Self::Line => Interrupts::LineOrMessage,
            Self::MsiX => Interrupts::Table,
        }
    }
}

/// What the command line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How the cell learns of frames.
    pub mode: Mode,
    /// The address of the cell.
    pub address: Ipv4Addr,
    /// Bits of the address that name the network.
    pub prefix: u8,
    /// The card, where it is not the first one that the cell has.
    pub function: Option<Function>,
}

impl Plan {
    /// Reads the words `mode`, `address` (with `/bits` or without) and `device`.
    ///
    /// # Panics
    /// When one of them makes no sense.
    pub fn read(arguments: Arguments<'_>) -> Self {
        let mode = match arguments.get("mode") {
            None => Mode::Poll,
            Some(word) => [Mode::Poll, Mode::Msi, Mode::MsiX, Mode::Line]
                .into_iter()
                .find(|mode| mode.name() == word)
                .unwrap_or_else(|| refuse("mode", word, "poll, msi, msix or intx")),
        };
        let text = arguments.get("address").unwrap_or("10.0.2.15");
        let (address, prefix) = parse_address(text).unwrap_or_else(|| {
            refuse(
                "address",
                text,
                "a host's address such as 10.0.2.15 or 10.0.2.15/24",
            )
        });
        let function = arguments.get("device").map(|text| {
            Function::parse(text)
                .unwrap_or_else(|| refuse("device", text, "an address such as 00:02.0"))
        });
        Self {
            mode,
            address,
            prefix,
            function,
        }
    }
}

fn parse_address(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "24"));
    let address: Ipv4Addr = address.parse().ok()?;
    let prefix = prefix
        .parse()
        .ok()
        .filter(|prefix| (1..=30).contains(prefix))?;
    let is_host = !address.is_unspecified()
        && !address.is_broadcast()
        && !address.is_multicast()
        && !address.is_loopback();
    is_host.then_some((address, prefix))
}

fn refuse(key: &str, value: &str, expected: &str) -> ! {
    panic!("the command line says \"{key}={value}\", but {key} takes {expected}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(text: &str) -> Plan {
        Plan::read(Arguments::from_bytes(text.as_bytes()))
    }

    #[test]
    fn without_words_it_polls() {
        let plan = plan("");
        assert_eq!(plan.mode, Mode::Poll);
        assert_eq!(plan.address, Ipv4Addr::new(10, 0, 2, 15));
        assert_eq!((plan.prefix, plan.function), (24, None));
    }

    #[test]
    fn words_are_understood() {
        let plan = plan("mode=msix address=192.168.7.9/28 device=00:02.0");
        assert_eq!(plan.mode, Mode::MsiX);
        assert_eq!(plan.address, Ipv4Addr::new(192, 168, 7, 9));
        assert_eq!(plan.prefix, 28);
        assert_eq!(plan.function, Some(Function::new(0x10)));
        assert_eq!(
            self::plan("mode=intx").mode.interrupts(),
            Interrupts::LineOrMessage
        );
    }

    #[test]
    #[should_panic(expected = "\"mode=fast\", but mode takes poll")]
    fn an_unknown_mode_is_refused() {
        plan("mode=fast");
    }

    #[test]
    fn addresses_of_nobody_are_refused() {
        for text in [
            "224.0.0.1",
            "255.255.255.255",
            "0.0.0.0",
            "127.0.0.1",
            "10.0.2",
            "10.0.2.1/31",
            "10.0.2.1/x",
        ] {
            assert_eq!(parse_address(text), None, "{text}");
        }
    }

    #[test]
    #[should_panic(expected = "device takes an address")]
    fn an_unknown_device_is_refused() {
        plan("device=eth0");
    }
}
