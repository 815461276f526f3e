//! Modbus, over TCP or a serial line: registers as properties.

mod address;
mod bus;
mod plan;
mod port;
mod register;

use std::collections::{BTreeSet, HashMap};

use tokio::task::JoinSet;
use tokio_modbus::ExceptionCode;

pub use self::address::{BusAddress, SerialLine};
use self::{
    address::Place,
    bus::{Answer, Ask, Bus, BusError, BusHandle, WeakHandle},
    plan::Read,
    register::{MAX_WORDS, Register},
};
use super::{
    driver::{Driver, Reading, Trouble},
    spec::DeviceSpec,
    value::Value,
};

/// At 9600 baud a register for which nobody asked costs two characters, and another request some twenty.
const SERIAL_GAP: u16 = 10;

/// The buses that are in use.
#[derive(Default)]
pub(super) struct Buses {
    open: HashMap<BusAddress, WeakHandle>,
    tasks: JoinSet<()>,
}

impl Buses {
    fn handle(&mut self, address: &BusAddress) -> BusHandle {
        if let Some(handle) = self.open.get(address).and_then(WeakHandle::upgrade) {
            return handle;
        }
        let (handle, bus) = Bus::new(address.clone());
        self.open.retain(|_, weak| weak.upgrade().is_some());
        self.open.insert(address.clone(), handle.downgrade());
        self.tasks.spawn(bus.run());
        handle
    }

    /// Until a bus has ended that nobody needs; for ever, while all are needed.
    pub(super) async fn ended(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok(())) => {}
            // Its devices say that they are stopping; they are started again with the next change of theirs.
            Some(Err(error)) => tracing::error!(%error, "the task of a bus died"),
            None => std::future::pending().await,
        }
    }
}

/// The driver of one slave.
pub(super) struct Modbus {
    place: Place,
    bus: BusHandle,
    /// By the property's position.
    registers: Vec<Option<Register>>,
    /// See [`plan::plan`].
    gap: u16,
    /// Properties whose registers the device does not have, as it says.
    alone: BTreeSet<usize>,
}

impl Modbus {
    /// The second is what cannot be read, and why. The error is that of the whole device.
    pub(super) fn new(
        spec: &DeviceSpec,
        buses: &mut Buses,
        of_node: Option<&BusAddress>,
    ) -> Result<(Self, Vec<(usize, String)>), String> {
        let place = Place::parse(&spec.connection, of_node)?;
        let (mut registers, mut refused) = (Vec::with_capacity(spec.properties.len()), Vec::new());
        for (at, property) in spec.properties.iter().enumerate() {
            match Register::parse(property) {
                Ok(register) => registers.push(Some(register)),
                Err(reason) => {
                    registers.push(None);
                    refused.push((at, reason));
                }
            }
        }
        let gap = if matches!(place.bus, BusAddress::Serial(_)) { SERIAL_GAP } else { MAX_WORDS };
        let bus = buses.handle(&place.bus);
        Ok((Self { place, bus, registers, gap, alone: BTreeSet::new() }, refused))
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, BusError> {
        self.bus.ask(self.place.unit, ask, self.place.timeout, self.place.retries).await
    }

    /// Whether the device refused to read all of it at once, so that it was read one by one. What is no answer is an error.
    async fn read_together(
        &mut self,
        read: &Read,
        due: &[(usize, Register)],
        readings: &mut Vec<Reading>,
    ) -> Result<bool, BusError> {
        let code = match self.ask(Ask::Read(read.place)).await {
            Ok(answer) => {
                readings.extend(read.parts.iter().map(|&part| {
                    let (at, register) = &due[part];
                    (*at, decoded(register, read.place, &answer))
                }));
                return Ok(false);
            }
            Err(BusError::Exception(code)) => code,
            Err(error) => return Err(error),
        };
        if !is_missing(code) || read.parts.len() == 1 {
            for &part in &read.parts {
                if is_missing(code) {
                    self.alone.insert(due[part].0);
                }
                readings.push((due[part].0, Err(exception(code))));
            }
            return Ok(false);
        }
        for &part in &read.parts {
            let (at, register) = due[part];
            let reading = match self.ask(Ask::Read(register.place)).await {
                Ok(answer) => decoded(&register, register.place, &answer),
                Err(BusError::Exception(code)) => {
                    if is_missing(code) {
                        self.alone.insert(at);
                    }
                    Err(exception(code))
                }
                Err(error) => return Err(error),
            };
            readings.push((at, reading));
        }
        Ok(true)
    }
}

fn is_missing(code: ExceptionCode) -> bool {
    matches!(code, ExceptionCode::IllegalDataAddress | ExceptionCode::IllegalDataValue)
}

/// `read` is what the answer holds.
fn decoded(register: &Register, read: register::Place, answer: &Answer) -> Result<Value, Trouble> {
    let start = usize::from(register.place.address - read.address);
    let end = start + usize::from(register.place.count);
    let decoded = match answer {
        Answer::Bits(bits) => bits.get(start).map(|bit| Ok(register.bit_value(*bit))),
        Answer::Words(words) => words.get(start..end).map(|words| register.words_value(words)),
        Answer::Written => None,
    };
    decoded.unwrap_or_else(|| Err("the answer is too short".to_owned())).map_err(Trouble::property)
}

fn exception(code: ExceptionCode) -> Trouble {
    let reason = BusError::Exception(code).to_string();
    match code {
        // Said by a gateway, of a device behind it.
        ExceptionCode::GatewayTargetDevice | ExceptionCode::GatewayPathUnavailable => Trouble::device(reason),
        _ => Trouble::property(reason),
    }
}

impl Driver for Modbus {
    async fn read(&mut self, properties: &[usize]) -> Vec<Reading> {
        let due: Vec<(usize, Register)> = properties
            .iter()
            .filter_map(|&at| Some((at, self.registers.get(at).copied().flatten()?)))
            .collect();
        let mut readings = Vec::with_capacity(due.len());
        let together: Vec<usize> =
            (0..due.len()).filter(|&part| !self.alone.contains(&due[part].0)).collect();
        let places: Vec<register::Place> = together.iter().map(|&part| due[part].1.place).collect();
        let mut reads = plan::plan(&places, self.gap);
        for read in &mut reads {
            for part in &mut read.parts {
                *part = together[*part];
            }
        }
        for (part, (at, register)) in due.iter().enumerate() {
            if self.alone.contains(at) {
                reads.push(Read { place: register.place, parts: vec![part] });
            }
        }
        let all: Vec<register::Place> = due.iter().map(|(_, register)| register.place).collect();
        for read in &reads {
            let missing = self.alone.len();
            match self.read_together(read, &due, &mut readings).await {
                // Each was there by itself, so it is something between them that is not.
                Ok(true) if self.alone.len() == missing && read.has_gaps(&all) => self.gap = 0,
                Ok(_) => {}
                Err(error) => {
                    // No use asking for the rest of one that does not answer.
                    let done: BTreeSet<usize> = readings.iter().map(|(at, _)| *at).collect();
                    let reason = error.to_string();
                    let rest = due.iter().map(|(at, _)| *at).filter(|at| !done.contains(at));
                    readings.extend(rest.map(|at| (at, Err(Trouble::device(reason.clone())))));
                    break;
                }
            }
        }
        readings
    }

    async fn write(&mut self, property: usize, value: &Value) -> Result<(), Trouble> {
        let Some(register) = self.registers.get(property).copied().flatten() else {
            return Err(Trouble::property("the property has no register".to_owned()));
        };
        if !register.is_writable() {
            return Err(Trouble::property(format!("a {} cannot be written", register.place.table.name())));
        }
        let address = register.place.address;
        let ask = if register.place.table.is_bits() {
            Ask::WriteBit { address, bit: register.bit_for(value).map_err(Trouble::property)? }
        } else {
            Ask::WriteWords { address, words: register.words_for(value).map_err(Trouble::property)? }
        };
        match self.ask(ask).await {
            Ok(_) => Ok(()),
            Err(BusError::Exception(code)) => Err(exception(code)),
            Err(error) => Err(Trouble::device(error.to_string())),
        }
    }
}
