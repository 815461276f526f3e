//! What the slaves hold, and how a request is answered.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    str::FromStr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::faults::{Fault, Faults};

/// Requests that are remembered.
const HISTORY: usize = 100_000;

const ILLEGAL_FUNCTION: u8 = 1;
const ILLEGAL_ADDRESS: u8 = 2;
const ILLEGAL_VALUE: u8 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Table {
    Coil,
    Discrete,
    Input,
    Holding,
}

/// Registers from an address on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Set {
    pub(super) unit: u8,
    pub(super) table: Table,
    pub(super) address: u16,
    pub(super) values: Vec<u16>,
}

impl FromStr for Set {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (place, values) = text.split_once('=').context("there is no =")?;
        let mut parts = place.split(':');
        let (Some(unit), Some(table), Some(address), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            bail!("{place:?} is not UNIT:TABLE:ADDRESS")
        };
        Ok(Self {
            unit: unit.parse()?,
            table: serde_json::from_value(table.into())?,
            address: address.parse()?,
            values: values.split(',').map(str::parse).collect::<Result<_, _>>()?,
        })
    }
}

/// One that was asked, as the control socket tells it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Asked {
    unit: u8,
    function: u8,
    address: u16,
    /// Of a single write: the value.
    count: u16,
    /// Microseconds since the start.
    at: u64,
}

pub(super) struct Slaves {
    begun: Instant,
    state: Mutex<State>,
}

impl Default for Slaves {
    fn default() -> Self {
        Self { begun: Instant::now(), state: Mutex::default() }
    }
}

#[derive(Default)]
struct State {
    registers: HashMap<(u8, Table), BTreeMap<u16, u16>>,
    faults: Faults,
    asked: VecDeque<Asked>,
    /// Since the start.
    requests: u64,
}

impl Slaves {
    pub(super) fn set(&self, set: &Set) -> Result<()> {
        let mut state = self.state();
        let registers = state.registers.entry((set.unit, set.table)).or_default();
        for (value, at) in set.values.iter().zip(u32::from(set.address)..) {
            registers.insert(u16::try_from(at).context("beyond the last register")?, *value);
        }
        Ok(())
    }

    pub(super) fn get(&self, unit: u8, table: Table, address: u16, count: u16) -> Vec<Option<u16>> {
        let state = self.state();
        let registers = state.registers.get(&(unit, table));
        let range = u32::from(address)..u32::from(address) + u32::from(count);
        range.map(|at| registers?.get(&u16::try_from(at).ok()?).copied()).collect()
    }

    /// Of the next requests, or until others are told.
    pub(super) fn misbehave(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// What was asked since the last call.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.state().asked.drain(..).collect()
    }

    /// How many there were since the start.
    pub(super) fn requests(&self) -> u64 {
        self.state().requests
    }

    /// The PDU to answer this one with, and how; `None` for silence.
    pub(super) fn answer(&self, unit: u8, request: &[u8]) -> Option<(Vec<u8>, Option<Fault>)> {
        let mut state = self.state();
        let function = *request.first()?;
        let word = |at: usize| Some(u16::from_be_bytes([*request.get(at)?, *request.get(at + 1)?]));
        let at = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let asked = Asked { unit, function, address: word(1)?, count: word(3)?, at };
        state.requests += 1;
        if state.asked.len() == HISTORY {
            state.asked.pop_front();
        }
        state.asked.push_back(asked);
        let fault = state.faults.next(unit);
        if fault == Some(Fault::Silence) || !state.registers.keys().any(|(known, _)| *known == unit) {
            return None;
        }
        if let Some(Fault::Exception { code }) = fault {
            return Some((vec![function | 0x80, code], None));
        }
        let answer = state.execute(unit, request).unwrap_or_else(|code| vec![function | 0x80, code]);
        Some((answer, fault))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn execute(&mut self, unit: u8, request: &[u8]) -> Result<Vec<u8>, u8> {
        let word = |at: usize| match request.get(at..at + 2) {
            Some(&[high, low]) => Ok(u16::from_be_bytes([high, low])),
            _ => Err(ILLEGAL_VALUE),
        };
        let function = request[0];
        let (address, count) = (word(1)?, word(3)?);
        match function {
            1 | 2 => {
                let table = if function == 1 { Table::Coil } else { Table::Discrete };
                if !(1..=2000).contains(&count) {
                    return Err(ILLEGAL_VALUE);
                }
                let bits = self.read(unit, table, address, count)?;
                let mut bytes = vec![0_u8; bits.len().div_ceil(8)];
                for (at, bit) in bits.into_iter().enumerate() {
                    bytes[at / 8] |= u8::from(bit != 0) << (at % 8);
                }
                Ok([vec![function, u8::try_from(bytes.len()).map_err(|_| ILLEGAL_VALUE)?], bytes].concat())
            }
            3 | 4 => {
                let table = if function == 3 { Table::Holding } else { Table::Input };
                if !(1..=125).contains(&count) {
                    return Err(ILLEGAL_VALUE);
                }
                let words = self.read(unit, table, address, count)?;
                let bytes: Vec<u8> = words.into_iter().flat_map(u16::to_be_bytes).collect();
                Ok([vec![function, u8::try_from(bytes.len()).map_err(|_| ILLEGAL_VALUE)?], bytes].concat())
            }
            5 => {
                let bit = match count {
                    0 => 0,
                    0xff00 => 1,
                    _ => return Err(ILLEGAL_VALUE),
                };
                self.write(unit, Table::Coil, address, &[bit])?;
                Ok(request[..5].to_vec())
            }
            6 => {
                self.write(unit, Table::Holding, address, &[count])?;
                Ok(request[..5].to_vec())
            }
            16 => {
                let bytes = request.get(6..).ok_or(ILLEGAL_VALUE)?;
                let words: Vec<u16> =
                    bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
                if words.len() != usize::from(count) || !(1..=123).contains(&count) {
                    return Err(ILLEGAL_VALUE);
                }
                self.write(unit, Table::Holding, address, &words)?;
                Ok(request[..5].to_vec())
            }
            _ => Err(ILLEGAL_FUNCTION),
        }
    }

    fn read(&self, unit: u8, table: Table, address: u16, count: u16) -> Result<Vec<u16>, u8> {
        let registers = self.registers.get(&(unit, table)).ok_or(ILLEGAL_ADDRESS)?;
        (0..count)
            .map(|at| {
                let at = address.checked_add(at)?;
                registers.get(&at).copied()
            })
            .collect::<Option<_>>()
            .ok_or(ILLEGAL_ADDRESS)
    }

    /// All of it, or nothing.
    fn write(&mut self, unit: u8, table: Table, address: u16, values: &[u16]) -> Result<(), u8> {
        let count = u16::try_from(values.len()).map_err(|_| ILLEGAL_VALUE)?;
        self.read(unit, table, address, count)?;
        let registers = self.registers.get_mut(&(unit, table)).ok_or(ILLEGAL_ADDRESS)?;
        registers.extend((address..).zip(values.iter().copied()));
        Ok(())
    }
}

/// A control message that is nonsense is an error of the test.
pub(super) fn check(set: &Set) -> Result<()> {
    let bits = matches!(set.table, Table::Coil | Table::Discrete);
    ensure!(!bits || set.values.iter().all(|value| *value < 2), "a bit is 0 or 1");
    Ok(())
}
