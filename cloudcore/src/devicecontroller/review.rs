//! What the API server asks of a conversion webhook: `ConversionReview` of `apiextensions.k8s.io/v1`.

use crds::devices::conversion::{self, Version};
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Review {
    request: Request,
}

#[derive(Deserialize)]
struct Request {
    uid: String,
    #[serde(rename = "desiredAPIVersion")]
    desired: String,
    objects: Vec<Value>,
}

/// The answer to a review. All of its objects are converted, or none is.
///
/// # Errors
/// What is no review.
pub fn convert(body: &[u8]) -> Result<Value, String> {
    let Review { request: Request { uid, desired, objects } } =
        serde_json::from_slice(body).map_err(|error| format!("this is no ConversionReview: {error}"))?;
    let converted = Version::of(&desired).and_then(|to| {
        objects.into_iter().map(|object| conversion::convert(object, to)).collect::<Result<Vec<_>, _>>()
    });
    let response = match converted {
        Ok(objects) => json!({"uid": uid, "result": {"status": "Success"}, "convertedObjects": objects}),
        Err(error) => json!({"uid": uid, "result": {"status": "Failure", "message": error.to_string()}}),
    };
    Ok(json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": response}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(version: &str, kind: &str) -> Value {
        let body = json!({"request": {"uid": "u", "desiredAPIVersion": format!("devices.kubeedge.io/{version}"), "objects": [
            {"apiVersion": "devices.kubeedge.io/v1alpha2", "kind": kind, "metadata": {"name": "pump"},
                "spec": {"protocol": {"modbus": {"slaveID": 1}}}},
        ]}});
        let answer = convert(body.to_string().as_bytes()).unwrap();
        assert_eq!(answer["response"]["uid"], "u");
        answer["response"].clone()
    }

    #[test]
    fn the_objects_of_a_review_are_converted() {
        let answer = review("v1beta1", "Device");
        assert_eq!(answer["result"]["status"], "Success");
        let spec = &answer["convertedObjects"][0]["spec"];
        assert_eq!(spec["protocol"], json!({"protocolName": "modbus", "configData": {"slaveID": 1}}));
    }

    #[test]
    fn what_cannot_be_converted_says_why() {
        for (version, kind, reason) in
            [("v1", "Device", "v1\" is neither"), ("v1beta1", "Rule", "kind \"Rule\"")]
        {
            let answer = review(version, kind);
            assert_eq!(answer["result"]["status"], "Failure");
            assert!(answer["result"]["message"].as_str().unwrap().contains(reason), "{answer}");
        }
        assert!(convert(b"{}").unwrap_err().contains("no ConversionReview"));
    }
}
