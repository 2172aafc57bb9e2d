#![no_main]

use bluehook_fuzz::{appliance, ask};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let intake = appliance().intake;
    ask(intake, data);
    // The innocent next request.
    let ping = b"GET /webhooks/bluereplies HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    assert_eq!(ask(intake, ping), [200]);
});
