use super::*;
use proptest::prelude::*;

/// One function with registers that behave, but for lists.
struct Model {
    function: Function,
    words: [u32; 64],
    writable: [u32; 64],
}

impl Model {
    fn new() -> Self {
        let mut model = Self {
            function: Function::new(0x10),
            words: [0; 64],
            writable: [0; 64],
        };
        model.words[0] = 0x10d3_8086;
        model.words[1] = STATUS_CAPABILITIES;
        model.writable[1] = 0x0000_0547;
        model.words[13] = 0xc8;
        model
    }

    fn put(&mut self, offset: usize, value: u32, writable: u32) {
        self.words[offset / 4] = value;
        self.writable[offset / 4] = writable;
    }
}

impl Configuration for Model {
    fn read(&self, function: Function, offset: u16) -> u32 {
        assert!(offset.is_multiple_of(4) && offset < 256);
        match function == self.function {
            true => self.words[usize::from(offset / 4)],
            false => u32::MAX,
        }
    }

    fn write(&mut self, function: Function, offset: u16, value: u32) {
        assert!(offset.is_multiple_of(4) && function == self.function);
        let word = usize::from(offset / 4);
        let writable = self.writable[word];
        self.words[word] = self.words[word] & !writable | value & writable;
    }
}

#[test]
fn addresses_are_read_as_they_are_written() {
    for (text, number) in [
        ("00:02.0", Some(0x10)),
        ("0000:00:02.0", Some(0x10)),
        ("ff:1f.7", Some(0xffff)),
        ("0:3.1", Some(0x19)),
        ("0001:00:02.0", None),
        ("00:20.0", None),
        ("00:02.8", None),
        ("100:02.0", None),
        ("00:+2.0", None),
        ("00:02", None),
        ("", None),
    ] {
        assert_eq!(
            Function::parse(text).map(Function::number),
            number,
            "{text}"
        );
    }
    assert_eq!(Function::new(0x2fb).to_string(), "02:1f.3");
}

#[test]
fn only_what_is_there_is_found() {
    let model = Model::new();
    let found: Vec<_> = functions(&model, 0..2).collect();
    let id = Id {
        vendor: 0x8086,
        device: 0x10d3,
    };
    assert_eq!(found, [(Function::new(0x10), id)]);
    assert_eq!(functions(&model, 1..300).count(), 0);
}

#[test]
fn registers_have_their_sizes_and_keep_their_addresses() {
    let mut model = Model::new();
    model.put(0x10, 0xfebc_0000, 0xfffe_0000);
    model.put(0x14, 0xc001, 0xffe0);
    model.put(0x18, 0x0000_000c, 0xffff_c000);
    model.put(0x1c, 0x20, 0xffff_ffff);
    let before = model.words;
    let function = model.function;
    let memory = |address, size, wide| Bar::Memory {
        address,
        size,
        wide,
    };
    assert_eq!(
        bar(&mut model, function, 0),
        Some(memory(0xfebc_0000, 0x2_0000, false))
    );
    assert_eq!(
        bar(&mut model, function, 1),
        Some(Bar::Ports {
            first: 0xc000,
            count: 0x20
        })
    );
    assert_eq!(
        bar(&mut model, function, 2),
        Some(memory(0x20_0000_0000, 0x4000, true))
    );
    assert_eq!(bar(&mut model, function, 4), None);
    assert_eq!(bar(&mut model, function, 6), None);
    assert_eq!(model.words, before);
}

#[test]
fn a_message_goes_to_one_cpu() {
    let vector = Vector::new(0x41);
    assert_eq!(
        Message::to(3, vector),
        Some(Message {
            address: 0xfee0_3000,
            data: 0x41
        })
    );
    assert_eq!(Message::to(256, vector), None);
}

#[test]
fn msi_is_switched_on_with_its_message() {
    let mut model = Model::new();
    // Wide, with masks, 8 messages offered.
    model.put(0xc8, 0x0186_0005 | 7 << 20, 0x0071_0000);
    for offset in [0xcc, 0xd0, 0xd4, 0xd8] {
        model.put(offset, 0x5555_5555, u32::MAX);
    }
    let (function, message) = (model.function, Message::to(2, Vector::new(0x50)).unwrap());
    enable_msi(&mut model, function, message).unwrap();
    assert_eq!(model.words[0xc8 / 4], 0x0187_0005);
    let fields: Vec<u32> = (0xcc / 4..=0xd8 / 4)
        .map(|word| model.words[word])
        .collect();
    assert_eq!(fields, [0xfee0_2000, 0, 0x50, 0]);
    assert!(command(&model, function).contains(Command::NO_INTERRUPT_LINE));
    disable_msi(&mut model, function);
    assert_eq!(model.words[0xc8 / 4], 0x0186_0005);
}

#[test]
fn narrow_msi_has_its_data_elsewhere() {
    let mut model = Model::new();
    model.put(0xc8, 0x0000_0005, 0x0071_0000);
    for offset in [0xcc, 0xd0, 0xd4] {
        model.put(offset, 0x5555_5555, u32::MAX);
    }
    let (function, message) = (model.function, Message::to(2, Vector::new(0x50)).unwrap());
    enable_msi(&mut model, function, message).unwrap();
    let fields: Vec<u32> = (0xcc / 4..=0xd4 / 4)
        .map(|word| model.words[word])
        .collect();
    assert_eq!(fields, [0xfee0_2000, 0x50, 0x5555_5555]);
}

#[test]
fn what_is_missing_is_missing() {
    let mut model = Model::new();
    let (function, message) = (model.function, Message::to(2, Vector::new(0x50)).unwrap());
    assert_eq!(enable_msi(&mut model, function, message), Err(Missing(MSI)));
    assert_eq!(MsiX::find(&model, function), Err(Missing(MSI_X)));
    model.words[1] = 0;
    model.put(0xc8, 0x0000_0005, 0);
    assert_eq!(capability(&model, function, MSI), None);
}

struct Table([u32; 64]);

impl Registers for Table {
    fn read(&self, offset: u32) -> u32 {
        self.0[offset as usize / 4]
    }

    fn write(&mut self, offset: u32, value: u32) {
        self.0[offset as usize / 4] = value;
    }
}

#[test]
fn an_entry_of_the_table_is_filled() {
    let mut model = Model::new();
    model.put(0xc8, 0x0004_0011, 0xc000_0000);
    model.put(0xcc, 0x0000_0043, 0);
    let function = model.function;
    let table = MsiX::find(&model, function).unwrap();
    assert_eq!((table.bar, table.offset, table.entries), (3, 0x40, 5));
    let mut registers = Table([7; 64]);
    table.set(
        &mut registers,
        1,
        Message::to(1, Vector::new(0x61)).unwrap(),
    );
    assert_eq!(registers.0[0x50 / 4..0x60 / 4], [0xfee0_1000, 0, 0x61, 0]);
    assert!(registers.0[..0x50 / 4].iter().all(|word| *word == 7));
    table.enable(&mut model, function);
    assert_eq!(model.words[0xc8 / 4], 0x8004_0011);
    table.disable(&mut model, function);
    assert_eq!(model.words[0xc8 / 4], 0x0004_0011);
}

#[test]
#[should_panic(expected = "no entry 5")]
fn there_are_no_more_entries_than_the_function_says() {
    let table = MsiX {
        at: 0xc8,
        bar: 3,
        offset: 0,
        entries: 5,
    };
    table.set(
        &mut Table([0; 64]),
        5,
        Message {
            address: 0,
            data: 0,
        },
    );
}

proptest! {
    #[test]
    fn whatever_a_function_says_is_survived(words in proptest::collection::vec(any::<u32>(), 64), wanted: u8) {
        let mut model = Model::new();
        model.words.copy_from_slice(&words);
        let function = model.function;
        if let Some(at) = capability(&model, function, wanted) {
            prop_assert!((0x40..0x100).contains(&at));
        }
        for number in 0..8 {
            let _ = bar(&mut model, function, number);
        }
        if let Ok(table) = MsiX::find(&model, function) {
            prop_assert!(table.bar < BAR_COUNT && (1..=2048).contains(&table.entries));
        }
    }

    #[test]
    fn a_list_without_an_end_is_left(next in 0x10u8..0x3f) {
        let mut model = Model::new();
        for word in 16..64 {
            model.words[word] = u32::from(next & 0x3c | 0x40) << 8 | 0x9;
        }
        prop_assert_eq!(capability(&model, model.function, MSI), None);
    }

    #[test]
    fn any_text_is_an_address_or_not(text: String) {
        let _ = Function::parse(&text);
    }
}
