//! One connection to one bus, which has one request at a time, whatever devices share it.
//!
//! tokio-modbus has no deadlines, and after a call that was given up it takes the late answer for the next one: so nothing is asked
//! on a connection of which something may still come. Over TCP it is given up. A serial line has nothing to give up: what it still
//! holds is read away, and the unit that did not answer is not asked until its answer would be too late for anybody.

use std::{
    borrow::Cow,
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use runtime::backoff::Backoff;
use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    sync::{mpsc, oneshot},
    time::{self, Instant},
};
use tokio_modbus::{
    ExceptionCode, Request as Call, Response, Slave,
    client::{Client as _, Context, rtu, tcp},
    prelude::SlaveContext as _,
};
use tokio_serial::SerialStream;
use tracing::{debug, info, warn};

use super::{
    address::{BusAddress, Parity, SerialLine},
    port::Port,
    register::{Place, Table},
};

/// Requests that wait for their turn: each device has one at a time, so this many devices on one bus wait without waiting to wait.
const QUEUE: usize = 32;
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// A line that never falls silent is not waited for longer.
const DRAIN_LIMIT: Duration = Duration::from_millis(500);
/// More is on no line after one answer.
const DRAIN_BYTES: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ask {
    Read(Place),
    WriteBit { address: u16, bit: bool },
    WriteWords { address: u16, words: Vec<u16> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Bits(Vec<bool>),
    Words(Vec<u16>),
    Written,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum BusError {
    /// The device answered, with this.
    #[error("the device answered with exception {}: {}", u8::from(*.0), .0)]
    Exception(ExceptionCode),
    #[error("the device did not answer within {0:?}")]
    TimedOut(Duration),
    /// It did not answer before, and may still.
    #[error("the device did not answer, and is not asked again yet")]
    Resting,
    #[error("{bus} cannot be reached: {reason}")]
    Unreachable { bus: String, reason: String },
    #[error("the answer was not one to the question: {0}")]
    Garbled(String),
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("edgecore is stopping")]
    Stopping,
}

impl BusError {
    /// Whether the same request may succeed at once.
    fn is_transient(&self) -> bool {
        matches!(self, Self::Garbled(_) | Self::Broken(_) | Self::TimedOut(_))
    }
}

struct Request {
    unit: u8,
    ask: Ask,
    timeout: Duration,
    retries: u32,
    reply: oneshot::Sender<Result<Answer, BusError>>,
}

/// A bus for its devices; when the last one is dropped, the connection is closed.
#[derive(Debug, Clone)]
pub(super) struct BusHandle(mpsc::Sender<Request>);

/// A handle that keeps no bus open.
#[derive(Debug)]
pub(super) struct WeakHandle(mpsc::WeakSender<Request>);

impl WeakHandle {
    pub(super) fn upgrade(&self) -> Option<BusHandle> {
        self.0.upgrade().map(BusHandle)
    }
}

impl BusHandle {
    pub(super) fn downgrade(&self) -> WeakHandle {
        WeakHandle(self.0.downgrade())
    }

    /// Waits for its turn, and for the answer.
    pub(super) async fn ask(
        &self,
        unit: u8,
        ask: Ask,
        timeout: Duration,
        retries: u32,
    ) -> Result<Answer, BusError> {
        let (reply, answer) = oneshot::channel();
        let request = Request { unit, ask, timeout, retries, reply };
        self.0.send(request).await.map_err(|_| BusError::Stopping)?;
        answer.await.unwrap_or(Err(BusError::Stopping))
    }
}

/// Owns the connection.
pub(super) struct Bus {
    address: BusAddress,
    requests: mpsc::Receiver<Request>,
    connection: Option<Connection>,
    /// After an attempt to connect that failed: when to try again, and why it failed.
    down: Option<(Instant, String)>,
    backoff: Backoff,
    /// Units of a serial line that did not answer, and until when they may.
    late: HashMap<u8, Instant>,
}

struct Connection {
    context: Context,
    /// Of a serial line, beside the context that reads from it.
    port: Option<Arc<Mutex<SerialStream>>>,
    /// It has carried an answer.
    proven: bool,
    /// When the last answer ended. On a serial line what follows is another frame only after a silence.
    heard: Instant,
}

impl Bus {
    pub(super) fn new(address: BusAddress) -> (BusHandle, Self) {
        let (sender, requests) = mpsc::channel(QUEUE);
        let bus = Self {
            address,
            requests,
            connection: None,
            down: None,
            backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(30)),
            late: HashMap::new(),
        };
        (BusHandle(sender), bus)
    }

    /// Until no device needs the bus.
    pub(super) async fn run(mut self) {
        while let Some(request) = self.requests.recv().await {
            // Who asked is gone, with its device.
            if request.reply.is_closed() {
                continue;
            }
            let Request { unit, ask, timeout, retries, reply } = request;
            let answer = self.serve(unit, &ask, timeout, retries).await;
            if reply.send(answer).is_err() {
                debug!(bus = %self.address, unit, "nobody waits for an answer");
            }
        }
    }

    async fn serve(
        &mut self,
        unit: u8,
        ask: &Ask,
        timeout: Duration,
        retries: u32,
    ) -> Result<Answer, BusError> {
        let now = Instant::now();
        self.late.retain(|_, until| *until > now);
        if self.late.contains_key(&unit) {
            return Err(BusError::Resting);
        }
        let mut left = retries;
        loop {
            let was_proven = self.connection.as_ref().is_some_and(|connection| connection.proven);
            let error = match self.once(unit, ask, timeout).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            self.recover(unit, &error, timeout).await;
            // A slave ends a connection that was idle, and the next request finds it out.
            let was_stale = was_proven && matches!(error, BusError::Broken(_));
            if !error.is_transient() || self.late.contains_key(&unit) || (left == 0 && !was_stale) {
                return Err(error);
            }
            left = left.saturating_sub(u32::from(!was_stale));
            debug!(bus = %self.address, unit, %error, "asking again");
        }
    }

    async fn once(&mut self, unit: u8, ask: &Ask, timeout: Duration) -> Result<Answer, BusError> {
        self.connect().await?;
        let connection = self.connection.as_mut().ok_or(BusError::Stopping)?;
        if let BusAddress::Serial(line) = &self.address {
            until(connection.heard + line.silence()).await;
        }
        connection.context.set_slave(Slave(unit));
        let answered = time::timeout(timeout, connection.context.call(call(ask)));
        let response = match answered.await {
            Err(_) => return Err(BusError::TimedOut(timeout)),
            Ok(Err(tokio_modbus::Error::Protocol(error))) => {
                return Err(BusError::Garbled(error.to_string()));
            }
            Ok(Err(tokio_modbus::Error::Transport(error))) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(BusError::Garbled(error.to_string()));
            }
            Ok(Err(tokio_modbus::Error::Transport(error))) => {
                return Err(BusError::Broken(error.to_string()));
            }
            Ok(Ok(response)) => response,
        };
        (connection.proven, connection.heard) = (true, Instant::now());
        answer(ask, response.map_err(BusError::Exception)?)
    }

    async fn connect(&mut self) -> Result<(), BusError> {
        if self.connection.is_some() {
            return Ok(());
        }
        let unreachable = |bus: &BusAddress, reason: &str| BusError::Unreachable {
            bus: bus.to_string(),
            reason: reason.to_owned(),
        };
        if let Some((again, reason)) = &self.down
            && *again > Instant::now()
        {
            return Err(unreachable(&self.address, reason));
        }
        match open(&self.address).await {
            Ok(connection) => {
                if self.down.take().is_some() {
                    info!(bus = %self.address, "bus is reached again");
                }
                self.backoff.reset();
                self.connection = Some(connection);
                Ok(())
            }
            Err(reason) => {
                if self.down.is_none() {
                    warn!(bus = %self.address, reason, "bus cannot be reached; trying on");
                }
                let error = unreachable(&self.address, &reason);
                self.down = Some((Instant::now() + self.backoff.next_delay(), reason));
                Err(error)
            }
        }
    }

    /// Makes sure that nothing which may still come is taken for another answer.
    async fn recover(&mut self, unit: u8, error: &BusError, timeout: Duration) {
        if matches!(error, BusError::Exception(_) | BusError::Unreachable { .. } | BusError::Resting) {
            return;
        }
        let port = self.connection.as_ref().and_then(|connection| connection.port.clone());
        match (&self.address, port) {
            (BusAddress::Serial(line), Some(port)) if !matches!(error, BusError::Broken(_)) => {
                if matches!(error, BusError::TimedOut(_)) {
                    self.late.insert(unit, Instant::now() + timeout);
                }
                drain(port, line.silence().max(Duration::from_millis(2))).await;
            }
            _ => self.connection = None,
        }
    }
}

fn call(ask: &Ask) -> Call<'_> {
    match ask {
        Ask::Read(Place { table, address, count }) => match table {
            Table::Coils => Call::ReadCoils(*address, *count),
            Table::DiscreteInputs => Call::ReadDiscreteInputs(*address, *count),
            Table::Inputs => Call::ReadInputRegisters(*address, *count),
            Table::Holdings => Call::ReadHoldingRegisters(*address, *count),
        },
        Ask::WriteBit { address, bit } => Call::WriteSingleCoil(*address, *bit),
        Ask::WriteWords { address, words } => match words[..] {
            [word] => Call::WriteSingleRegister(*address, word),
            _ => Call::WriteMultipleRegisters(*address, Cow::Borrowed(words)),
        },
    }
}

/// tokio-modbus takes an answer of any length, and of any place.
fn answer(ask: &Ask, response: Response) -> Result<Answer, BusError> {
    let garbled = |what: String| Err(BusError::Garbled(what));
    match (ask, response) {
        (Ask::Read(place), Response::ReadCoils(mut bits) | Response::ReadDiscreteInputs(mut bits)) => {
            let count = usize::from(place.count);
            // They come in whole bytes.
            if bits.len() != count.next_multiple_of(8) && bits.len() != count {
                return garbled(format!("{} bits instead of {count}", bits.len()));
            }
            bits.truncate(count);
            Ok(Answer::Bits(bits))
        }
        (Ask::Read(place), Response::ReadInputRegisters(words) | Response::ReadHoldingRegisters(words)) => {
            if words.len() != usize::from(place.count) {
                return garbled(format!("{} registers instead of {}", words.len(), place.count));
            }
            Ok(Answer::Words(words))
        }
        (Ask::WriteBit { address, bit }, Response::WriteSingleCoil(at, written))
            if (at, written) == (*address, *bit) =>
        {
            Ok(Answer::Written)
        }
        (Ask::WriteWords { address, words }, Response::WriteSingleRegister(at, written))
            if at == *address && words[..] == [written] =>
        {
            Ok(Answer::Written)
        }
        (Ask::WriteWords { address, words }, Response::WriteMultipleRegisters(at, count))
            if at == *address && usize::from(count) == words.len() =>
        {
            Ok(Answer::Written)
        }
        (_, response) => garbled(format!("{response:?}")),
    }
}

async fn open(address: &BusAddress) -> Result<Connection, String> {
    match address {
        BusAddress::Tcp { host, port } => {
            let connecting = TcpStream::connect((&**host, *port));
            let stream = match time::timeout(CONNECT_DEADLINE, connecting).await {
                Err(_) => return Err(format!("nothing answered within {CONNECT_DEADLINE:?}")),
                Ok(Err(error)) => return Err(error.to_string()),
                Ok(Ok(stream)) => stream,
            };
            // A request is one small packet, which is not to wait for another.
            stream.set_nodelay(true).map_err(|error| error.to_string())?;
            Ok(Connection { context: tcp::attach(stream), port: None, proven: false, heard: Instant::now() })
        }
        BusAddress::Serial(line) => {
            let stream = SerialStream::open(&builder(line)?).map_err(|error| error.to_string())?;
            let port = Arc::new(Mutex::new(stream));
            // What came while nobody read is no answer.
            drain(Arc::clone(&port), line.silence().max(Duration::from_millis(2))).await;
            let context = rtu::attach(Port::new(Arc::clone(&port)));
            Ok(Connection { context, port: Some(port), proven: false, heard: Instant::now() })
        }
    }
}

fn builder(line: &SerialLine) -> Result<tokio_serial::SerialPortBuilder, String> {
    use tokio_serial::{DataBits, StopBits};
    let data_bits = match line.data_bits {
        5 => DataBits::Five,
        6 => DataBits::Six,
        7 => DataBits::Seven,
        8 => DataBits::Eight,
        other => return Err(format!("dataBits {other} is not from 5 to 8")),
    };
    let parity = match line.parity {
        Parity::None => tokio_serial::Parity::None,
        Parity::Even => tokio_serial::Parity::Even,
        Parity::Odd => tokio_serial::Parity::Odd,
    };
    let stop_bits = if line.stop_bits == 2 { StopBits::Two } else { StopBits::One };
    Ok(tokio_serial::new(&*line.path, line.baud_rate)
        .data_bits(data_bits)
        .parity(parity)
        .stop_bits(stop_bits))
}

/// To a tenth of a millisecond: tokio's timers have whole ones, which at 115,200 baud is a fifth of a poll.
async fn until(then: Instant) {
    const COARSE: Duration = Duration::from_millis(3);
    let left = then.saturating_duration_since(Instant::now());
    if left > COARSE {
        return time::sleep(left).await;
    }
    if !left.is_zero() {
        #[expect(clippy::disallowed_methods, reason = "for less than a timer can wait")]
        let slept = tokio::task::spawn_blocking(move || std::thread::sleep(left));
        if slept.await.is_err() {
            time::sleep(left).await;
        }
    }
}

/// Reads away what comes, until nothing has for `silence`.
async fn drain(port: Arc<Mutex<SerialStream>>, silence: Duration) {
    let (mut port, mut buffer, mut bytes) = (Port::new(port), [0; 256], 0);
    let end = Instant::now() + DRAIN_LIMIT;
    while bytes < DRAIN_BYTES && Instant::now() < end {
        match time::timeout(silence, port.read(&mut buffer)).await {
            Ok(Ok(read)) if read > 0 => bytes += read,
            // Silent; or broken, which the next request finds.
            _ => break,
        }
    }
    if bytes > 0 {
        debug!(bytes, "what nobody waited for was read away");
    }
}

/// Nothing panics while it holds one.
pub(super) fn locked(port: &Mutex<SerialStream>) -> MutexGuard<'_, SerialStream> {
    port.lock().unwrap_or_else(PoisonError::into_inner)
}
