//! What the driver of Modbus is compared with: its library, and nothing around it.

use std::net::SocketAddr;

use anyhow::Result;
use tokio::net::TcpStream;
use tokio_modbus::{
    Slave,
    client::{Reader as _, tcp},
    prelude::SlaveContext as _,
};

pub(crate) async fn run(slaves: SocketAddr, units: u8, reads: u16, apart: u16) -> Result<()> {
    let stream = TcpStream::connect(slaves).await?;
    stream.set_nodelay(true)?;
    let mut context = tcp::attach(stream);
    loop {
        for unit in 1..=units {
            context.set_slave(Slave(unit));
            for number in 0..reads {
                context.read_holding_registers(number * apart, 1).await??;
            }
        }
    }
}
