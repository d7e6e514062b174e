/// Opens a file of weights and reads every tensor; the readers promise no more bytes than twice the file.
fn read_all(data: &[u8]) {
    let Ok(file) = qformer::weights::Weights::from_bytes("fuzz", data) else { return };
    let mut total = 0;
    for tensor in file.tensors() {
        if let Ok(bytes) = file.bytes(&tensor.name) {
            assert_eq!(bytes.len(), tensor.bytes());
            total += bytes.len();
        }
    }
    assert!(total <= 2 * data.len());
}
