//! Devices that speak MQTT themselves: a topic for each property, and one for whether the device is there.

mod connection;
mod path;
mod place;

use crds::broker::BrokerAddress;
use rumqttc::{AsyncClient, MqttOptions, QoS};
use tokio::{sync::mpsc, task::JoinSet};

use self::{
    connection::{Connection, Route},
    place::{Place, Server, Status},
};
use super::{
    driver::{Driver, Heard, Reading, Trouble},
    spec::DeviceSpec,
    value::Value,
};
use crate::access::Access;

/// Messages of a device that its actor has not taken yet; more wait at the broker.
const HEARD: usize = 16;
/// Subscriptions, and values to be written, on their way to the broker.
const REQUESTS: usize = 32;
/// Longer messages end the connection. Some cameras send pictures, which no property is.
const LONGEST: usize = 256 << 10;

pub(super) struct Mqtt {
    /// By the property's position.
    places: Vec<Option<Place>>,
    client: AsyncClient,
    heard: mpsc::Receiver<Heard>,
    _connection: JoinSet<()>,
}

impl Mqtt {
    /// The second is what cannot be read, and why. The error is that of the whole device.
    pub(super) fn new(
        spec: &DeviceSpec,
        of_node: Option<&BrokerAddress>,
        access: &Access,
    ) -> Result<(Self, Vec<(usize, String)>), String> {
        let server = Server::parse(&spec.connection, of_node)?;
        let status = Status::parse(&spec.connection)?;
        let (mut places, mut refused) = (Vec::with_capacity(spec.properties.len()), Vec::new());
        for (at, property) in spec.properties.iter().enumerate() {
            match Place::parse(&property.visitor) {
                Ok(place) => places.push(Some(place)),
                Err(reason) => {
                    places.push(None);
                    refused.push((at, reason));
                }
            }
        }
        let routes = spec.properties.iter().zip(&places).enumerate().filter_map(|(at, (property, place))| {
            let Place { topic, path, .. } = place.as_ref()?;
            Some(Route { at, kind: property.kind, topic: topic.clone(), path: path.clone() })
        });
        let routes: Vec<Route> = routes.collect();
        // No other client of the broker has it: two with one id would end each other's connection for ever.
        let id = format!("skerry-{}-{}-{}", spec.key.namespace(), spec.key.name(), spec.uid);
        let mut options = MqttOptions::new(id, server.address.host.clone(), server.address.port);
        options.set_max_packet_size(LONGEST, LONGEST);
        if let Some((user, password)) = &server.login {
            options.set_credentials(user.clone(), password.clone());
        } else if let Some((user, password)) = access.login_at(&server.address) {
            options.set_credentials(user, password);
        }
        let (client, events) = AsyncClient::new(options, REQUESTS);
        let (say, heard) = mpsc::channel(HEARD);
        let trust = server.address.secure.then(|| access.trust_at(&server.address).clone());
        let Server { address, login: _ } = server;
        let connection =
            Connection { client: client.clone(), events, broker: address, trust, routes, status, say };
        let mut task = JoinSet::new();
        task.spawn(connection.run());
        Ok((Self { places, client, heard, _connection: task }, refused))
    }
}

impl Driver for Mqtt {
    const IS_ASKED: bool = false;

    async fn heard(&mut self) -> Heard {
        match self.heard.recv().await {
            Some(heard) => heard,
            // The connection lasts as long as this does.
            None => std::future::pending().await,
        }
    }

    async fn read(&mut self, _: &[usize]) -> Vec<Reading> {
        Vec::new()
    }

    async fn write(&mut self, property: usize, value: &Value) -> Result<(), Trouble> {
        let write = self.places.get(property).and_then(Option::as_ref).and_then(|place| place.write.as_ref());
        let Some(write) = write else {
            return Err(Trouble::property("the property's visitor names no writeTopic".to_owned()));
        };
        let sent =
            self.client.try_publish(&*write.topic, QoS::AtLeastOnce, write.retain, write.payload(value));
        Err(match sent {
            // It is there once the device says so.
            Ok(()) => Trouble::property("the device has been told, and has not said it back yet".to_owned()),
            Err(_) => Trouble::property("too much waits to be sent to the broker".to_owned()),
        })
    }
}
