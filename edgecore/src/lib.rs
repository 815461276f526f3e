//! edgecore: the node agent. It keeps what the cloud wants in a local store, runs the pods over CRI, and reports what
//! is, with or without a cloud in reach. Reading order: [`metamanager`] the store, [`edgehub`] the link, [`edged`]
//! the pods, [`devicetwin`] the devices, [`eventbus`] MQTT for apps at the site, [`app`] the wiring.

pub mod devicetwin;
pub mod edged;
pub mod edgehub;
pub mod edgestream;
pub mod eventbus;
pub mod metamanager;

pub mod access;
pub mod app;
pub mod config;
pub mod doors;
mod event_name;
mod metrics;
mod mqtt;
