//! Realistic test events of the five types that Blue Replies sends.

use serde_json::{Map, Value, json};

use super::wire::TriggerRequest;
use crate::clock::Timestamp;
use crate::signature::{self, Policy};

pub const TYPES: [&str; 5] =
    ["message.sent", "message.delivered", "message.read", "message.failed", "message.received"];

/// An event ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub event_id: String,
    pub kind: String,
    pub body: Vec<u8>,
}

impl Sample {
    /// # Errors
    /// A `set` that is no `path=value`.
    pub fn build(request: &TriggerRequest, now: Timestamp) -> Result<Sample, String> {
        let event_id = format!("evt_{}", random_hex()?);
        let data = match &request.data {
            Some(data) => data.clone(),
            None => data(&request.kind, now)?,
        };
        let mut payload = json!({
            "eventId": event_id,
            "type": request.kind,
            "timestamp": now.to_rfc3339(),
            "data": data,
        });
        for assignment in &request.set {
            set(&mut payload, assignment)?;
        }
        let text = |name: &str, default: &str| {
            payload.get(name).and_then(Value::as_str).unwrap_or(default).to_owned()
        };
        let body = serde_json::to_vec(&payload);
        let body = body.map_err(|e| format!("cannot write the event: {e}"))?;
        Ok(Sample {
            event_id: text("eventId", &event_id),
            kind: text("type", &request.kind),
            // As the vendor's JavaScript writes it: a receiver that verifies over its own `JSON.stringify`, as
            // the vendor's example does, finds other bytes otherwise.
            body: signature::json::canonical(&body)
                .map_err(|e| format!("cannot write the event: {e}"))?,
        })
    }

    /// The headers that it is sent with, the signature among them; a well-formed one over other bytes where a
    /// bad one was asked for.
    ///
    /// # Errors
    /// The source has no secret.
    pub fn headers(
        &self,
        policy: &Policy,
        now: Timestamp,
        bad_signature: bool,
    ) -> Result<Vec<(String, String)>, String> {
        let mut bytes = self.body.clone();
        bytes.extend_from_slice(if bad_signature { b"?" } else { b"" });
        let signed = signature::sign(policy, &self.event_id, &bytes, now).ok_or(
            "cannot sign the event: the source has no secret; set WEBHOOK_SECRET or source.secrets",
        )?;
        let mut headers = vec![
            ("content-type".to_owned(), "application/json".to_owned()),
            ("user-agent".to_owned(), concat!("bluehook/", env!("CARGO_PKG_VERSION")).to_owned()),
        ];
        headers.extend(signed);
        Ok(headers)
    }
}

fn random_hex() -> Result<String, String> {
    let mut bytes = [0_u8; 12];
    getrandom::fill(&mut bytes).map_err(|e| format!("the system gives no random bytes: {e}"))?;
    Ok(hex::encode(bytes))
}

fn data(kind: &str, now: Timestamp) -> Result<Value, String> {
    let (ours, theirs) = ("+15550100001", "+15550100002");
    let received = kind == "message.received";
    let (from, to) = if received { (theirs, ours) } else { (ours, theirs) };
    let text = if received { "Yes, tomorrow at ten works." } else { "Does tomorrow at ten work?" };
    let mut data = Map::new();
    data.insert("messageId".to_owned(), format!("msg_{}", random_hex()?).into());
    let mut put = |name: &str, value: &str| data.insert(name.to_owned(), value.into());
    put("from", from);
    put("to", to);
    put("body", text);
    let time = now.to_rfc3339();
    match kind {
        "message.sent" => put("sentAt", &time),
        "message.delivered" => put("deliveredAt", &time),
        "message.read" => put("readAt", &time),
        "message.received" => put("receivedAt", &time),
        "message.failed" => put("error", "recipient is not reachable on iMessage"),
        // A type to come: what all have in common.
        _ => None,
    };
    Ok(Value::Object(data))
}

/// `data.body=Hi` sets that value; objects on the way are made. A value that is JSON is taken as such.
fn set(payload: &mut Value, assignment: &str) -> Result<(), String> {
    let wrong = || format!("{assignment:?} is no path=value, such as data.body=Hi");
    let (path, text) = assignment.split_once('=').ok_or_else(wrong)?;
    if path.split('.').any(str::is_empty) {
        return Err(wrong());
    }
    let value = match serde_json::from_str(text) {
        // A telephone number or an id of digits stays a text.
        Ok(value @ (Value::Bool(_) | Value::Null | Value::Object(_) | Value::Array(_))) => value,
        Ok(Value::String(text)) => text.into(),
        _ => text.into(),
    };
    let mut at = payload;
    for name in path.split('.') {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        let Value::Object(fields) = at else { return Err(wrong()) };
        at = fields.entry(name).or_insert(Value::Null);
    }
    *at = value;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_790_000_000_123);

    fn request(kind: &str) -> TriggerRequest {
        TriggerRequest {
            kind: kind.to_owned(),
            data: None,
            set: vec![],
            duplicate: false,
            bad_signature: false,
        }
    }

    fn payload(request: &TriggerRequest) -> Value {
        serde_json::from_slice(&Sample::build(request, NOW).unwrap().body).unwrap()
    }

    #[test]
    fn each_type_has_the_fields_that_the_vendor_sends() {
        for kind in TYPES {
            let json = payload(&request(kind));
            assert_eq!(json["type"], kind);
            assert!(json["eventId"].as_str().unwrap().starts_with("evt_"));
            for field in ["messageId", "from", "to", "body"] {
                assert!(json["data"][field].is_string(), "{kind}: {field}");
            }
        }
        assert_eq!(payload(&request("message.read"))["data"]["readAt"], NOW.to_rfc3339());
        assert!(payload(&request("message.failed"))["data"]["error"].is_string());
    }

    #[test]
    fn no_two_have_the_same_id() {
        let ids: Vec<_> = (0..50)
            .map(|_| Sample::build(&request("message.sent"), NOW).unwrap().event_id)
            .collect();
        let unique: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len());
    }

    #[test]
    fn values_are_set_by_path_and_numbers_stay_texts() {
        let mut with = request("message.received");
        with.set = vec!["data.body=Hi = there".into(), "data.from=15550".into(), "x.y=true".into()];
        let json = payload(&with);
        assert_eq!(json["data"]["body"], "Hi = there");
        assert_eq!(json["data"]["from"], "15550");
        assert_eq!(json["x"]["y"], true);
        with.set = vec!["data..body=1".into()];
        assert!(Sample::build(&with, NOW).is_err());
    }

    #[test]
    fn the_id_that_was_set_is_the_one_reported() {
        let mut with = request("message.read");
        with.set = vec!["eventId=evt_mine".into()];
        assert_eq!(Sample::build(&with, NOW).unwrap().event_id, "evt_mine");
    }

    /// Found with an Express server, which refused the signature.
    #[test]
    fn an_event_is_written_as_javascript_writes_it() {
        let data = serde_json::from_str(r#"{"b":1.0,"10":1,"2":1e21}"#).unwrap();
        let with = TriggerRequest { data: Some(data), ..request("odd") };
        let body = String::from_utf8(Sample::build(&with, NOW).unwrap().body).unwrap();
        assert!(body.ends_with(r#""data":{"2":1e+21,"10":1,"b":1}}"#), "{body}");
    }

    #[test]
    fn an_unknown_type_has_what_all_have_in_common_or_the_data_given() {
        let fields = payload(&request("message.lost"))["data"].as_object().unwrap().len();
        assert_eq!(fields, 4);
        let with = TriggerRequest { data: Some(json!({"a": 1})), ..request("message.lost") };
        assert_eq!(payload(&with)["data"], json!({"a": 1}));
    }
}
