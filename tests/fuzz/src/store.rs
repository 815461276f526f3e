//! The files of the edge store.

use edgecore::metamanager::fuzz;

use crate::{identity::scratch, input::Input};

/// An operation of most kinds, as it is written.
fn operations() -> Vec<Vec<u8>> {
    let text = |text: &[u8]| [&u32::try_from(text.len()).unwrap().to_le_bytes(), text].concat();
    let number = |number: u64| number.to_le_bytes();
    vec![
        [&[1][..], &text(b"Pod/default/web-0"), &number(7), &number(8), &text(b"{}")].concat(),
        [&[2][..], &text(b"Pod/default/web-0")].concat(),
        [&[3][..], &number(1), &4_i32.to_le_bytes(), &text(b"Pod/default/web-0"), &text(b"{}")].concat(),
        [&[4][..], &number(1)].concat(),
        [&[6][..], &text(b"seen"), &text(b"x")].concat(),
        [&[8][..], &number(2), &number(0)].concat(),
        [&[9][..], &number(1)].concat(),
    ]
}

pub(crate) fn records() -> Vec<Vec<u8>> {
    let mut records = operations();
    records.push(records.concat());
    records.push([&b"SKCLEAN1"[..], &[0; 72]].concat());
    records
}

pub(crate) fn record(bytes: &[u8]) {
    fuzz::payload(bytes);
    fuzz::marker(bytes);
}

pub(crate) fn files() -> Vec<Vec<u8>> {
    let operations = operations();
    let records: Vec<_> =
        (1..).zip(&operations).map(|(sequence, op)| (sequence, sequence - 1, op.as_slice())).collect();
    let checkpoint = [(0, 0, operations[5].as_slice()), (1, 0, operations[6].as_slice())];
    vec![fuzz::file(false, 1, &records), fuzz::file(true, 7, &checkpoint)]
}

/// Any file in the place of a journal or checkpoint.
pub(crate) fn file(bytes: &[u8]) {
    fuzz::read(&scratch("store"), bytes).unwrap();
}

pub(crate) fn sound_files() -> Vec<Vec<u8>> {
    let records: Vec<u8> = operations()
        .iter()
        .take(4)
        .flat_map(|op| [&[1, 0, u8::try_from(op.len()).unwrap()][..], op].concat())
        .collect();
    vec![[&[0, 1][..], &records].concat(), [&[1, 0][..], &records].concat(), [&[2, 1][..], &records].concat()]
}

/// A file whose checksums are right, whatever its numbers are; and one in which a byte of it is not.
pub(crate) fn sound_file(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = input.byte();
    let number = |byte: u8| match byte {
        250.. => u64::MAX - u64::from(255 - byte),
        byte => u64::from(byte),
    };
    let first = number(input.byte());
    let (mut records, mut sequence) = (Vec::new(), first);
    while !input.is_empty() {
        // How far it is after the one before, and what had been durable.
        let (step, durable) = (input.byte(), number(input.byte()));
        records.push((sequence, durable, input.string()));
        sequence = sequence.wrapping_add(number(step));
    }
    let mut file = fuzz::file(kind & 1 == 1, first, &records);
    fuzz::read(&scratch("store"), &file).unwrap();
    if kind & 2 == 2 {
        let at = (usize::from(kind >> 2) * 97) % file.len();
        file[at] ^= 1;
        fuzz::read(&scratch("store"), &file).unwrap();
    }
}
