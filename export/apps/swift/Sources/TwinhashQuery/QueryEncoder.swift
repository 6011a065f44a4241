import CoreGraphics
import CoreML
import CoreVideo
import Foundation
import ImageIO

/// The fields of the metadata that are used here.
public struct ModelMetadata: Decodable, Sendable {
    public let codeSpace: String
    public let bits: Int
    public let size: Int
    let rule: Int
    let layout: String
    let colourOrder: String
    let bitOrder: String
    let version: Int
}

/// `code`: bits/8 bytes, bit j in byte j/8 at place j%8.  `logits`: the numbers whose signs they are.
public struct Encoded: Sendable {
    public let code: [UInt8]
    public let logits: [Float]
}

/// `id`: the row in the gallery.  `distance`: the number of differing bits.
public struct Neighbour: Equatable, Sendable {
    public let id: Int
    public let distance: Int
}

public struct QueryEncoderError: LocalizedError {
    public let errorDescription: String?

    init(_ message: String) {
        errorDescription = message
    }
}

/// An image to its Twinhash code, by Core ML (iOS 16, macOS 13).
///
///     let url = Bundle.main.url(forResource: "query-fp16", withExtension: "mlmodelc")!  // Xcode compiles the package
///     let encoder = try await QueryEncoder(contentsOf: url, space: spaceOfTheGallery)
///     let hits = try await nearest(to: encoder.encode(photo: urlOfAPhoto).code, in: gallery, count: 10)
///
/// An actor: its work is done off the main thread, and it may be shared between tasks.
public actor QueryEncoder {
    public nonisolated let metadata: ModelMetadata
    private let model: MLModel

    /// Opens a compiled model; throws unless it carries metadata and its code space is `space`.
    public init(contentsOf url: URL, space: String, configuration: MLModelConfiguration = .init()) async throws {
        let model = try await MLModel.load(contentsOf: url, configuration: configuration)
        let entries = model.modelDescription.metadata[.creatorDefinedKey] as? [String: String]
        guard let text = entries?["twinhash.metadata"] else { throw QueryEncoderError("no Twinhash metadata in this model") }
        let decoder = JSONDecoder()
        decoder.keyDecodingStrategy = .convertFromSnakeCase
        let metadata = try decoder.decode(ModelMetadata.self, from: Data(text.utf8))
        try check(metadata, space)
        self.model = model
        self.metadata = metadata
    }

    /// The code of an image file, turned upright, and decoded reduced where it is large.
    public func encode(photo url: URL) async throws -> Encoded {
        guard let source = CGImageSourceCreateWithURL(url as CFURL, nil) else {
            throw QueryEncoderError("no image in \(url.lastPathComponent)")
        }
        return try await encode(upright(source, metadata.size))
    }

    /// The code of the bytes of an image file, as the photo picker hands them over, likewise.
    public func encode(photo data: Data) async throws -> Encoded {
        guard let source = CGImageSourceCreateWithData(data as CFData, nil) else {
            throw QueryEncoderError("no image in \(data.count) bytes")
        }
        return try await encode(upright(source, metadata.size))
    }

    /// The code of an upright image (a `CGImage` knows no orientation), in full or of no less than 4 * size.
    public func encode(_ image: CGImage) async throws -> Encoded {
        let value = MLFeatureValue(pixelBuffer: try pixelBuffer(toSquare(image, metadata.size), metadata.size))
        let input = try MLDictionaryFeatureProvider(dictionary: ["image": value])
        let output: MLFeatureProvider
        if #available(iOS 17, macOS 14, *) {
            output = try await model.prediction(from: input)
        } else {
            output = try predictWaiting(input)
        }
        guard let codes = output.featureValue(for: "codes")?.multiArrayValue,
              let logits = output.featureValue(for: "logits")?.multiArrayValue
        else { throw QueryEncoderError("a model without codes and logits") }
        let bytes = MLShapedArray<Int32>(codes).scalars.map { UInt8(truncatingIfNeeded: $0) }
        return Encoded(code: bytes, logits: MLShapedArray<Float>(logits).scalars)
    }

    private func predictWaiting(_ input: MLFeatureProvider) throws -> MLFeatureProvider { // the form without `async`
        try model.prediction(from: input)
    }
}

private func check(_ metadata: ModelMetadata, _ space: String) throws {
    guard metadata.codeSpace == space else {
        throw QueryEncoderError(
            "the model is of code space \(metadata.codeSpace), the gallery of \(space): ship the gallery's model")
    }
    let said = [String(metadata.rule), metadata.layout, metadata.colourOrder, metadata.bitOrder, String(metadata.version)]
    let understood = ["2", "image", "RGB", "little", "2"] // rule 2: upright, sRGB, not below 4 x size; then `toSquare`
    guard said == understood else {
        throw QueryEncoderError("the model wants \(said), this code does \(understood): update this code, or export the model again")
    }
}

/// The `count` nearest rows of a gallery of packed codes, row after row, by (distance, id).
public func nearest(to code: [UInt8], in gallery: [UInt8], count: Int) throws -> [Neighbour] {
    guard count > 0, !code.isEmpty, gallery.count % code.count == 0 else {
        throw QueryEncoderError("count = \(count), or rows that are not \(code.count) bytes")
    }
    var best: [Neighbour] = []
    for id in 0..<gallery.count / code.count {
        var distance = 0
        for i in 0..<code.count { distance += (code[i] ^ gallery[id * code.count + i]).nonzeroBitCount }
        if best.count == count, distance >= best[count - 1].distance { continue }
        let place = best.firstIndex { $0.distance > distance } ?? best.count
        best.insert(Neighbour(id: id, distance: distance), at: place)
        if best.count > count { best.removeLast() }
    }
    return best
}

/// The last step of the metadata's rule: RGB bytes of the square that is left when the shorter side is made `size` and the
/// longer one cropped.  The integer arithmetic is Pillow's, which made the gallery's images: same pixels, same square.
/// (Core Graphics and Vision scale by filters of their own.)
func toSquare(_ image: CGImage, _ size: Int) throws -> [UInt8] {
    let (width, height) = (image.width, image.height)
    let pixels = try rgba(image)
    let columns = taps(width, max(size, Int(Double(size * width) / Double(height))), size)
    let rows = taps(height, max(size, Int(Double(size * height) / Double(width))), size)
    var narrow = [UInt8](repeating: 0, count: 3 * size * height)
    for y in rows[0].start..<rows[size - 1].start + rows[size - 1].weights.count {
        for i in 0..<3 * size {
            narrow[3 * size * y + i] = columns[i / 3].weigh(pixels, 4 * width * y + i % 3, 4)
        }
    }
    return (0..<3 * size * size).map { rows[$0 / (3 * size)].weigh(narrow, $0 % (3 * size), 3 * size) }
}

/// A file's image, upright by its EXIF orientation, its shorter side reduced to 4 * `size` where it is longer.
private func upright(_ source: CGImageSource, _ size: Int) throws -> CGImage {
    guard let about = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any],
          let width = about[kCGImagePropertyPixelWidth] as? Int, let height = about[kCGImagePropertyPixelHeight] as? Int,
          min(width, height) > 0
    else { throw QueryEncoderError("not an image") }
    let scale = min(1, Double(4 * size) / Double(min(width, height)))
    let options: [CFString: Any] = [
        kCGImageSourceCreateThumbnailFromImageAlways: true, // not the small one that cameras add
        kCGImageSourceCreateThumbnailWithTransform: true,
        kCGImageSourceThumbnailMaxPixelSize: Int((Double(max(width, height)) * scale).rounded(.up)),
    ]
    guard let image = CGImageSourceCreateThumbnailAtIndex(source, 0, options as CFDictionary) else {
        throw QueryEncoderError("an image that cannot be decoded")
    }
    return image
}

/// Four bytes a pixel, as the server reads an image: converted to sRGB, transparency laid on white.
private func rgba(_ image: CGImage) throws -> [UInt8] {
    let (width, height) = (image.width, image.height)
    var pixels = [UInt8](repeating: 0, count: 4 * width * height)
    let drawn = pixels.withUnsafeMutableBytes { memory -> Bool in
        guard let plain = CGColorSpace(name: CGColorSpace.sRGB), let context = CGContext(
            data: memory.baseAddress, width: width, height: height, bitsPerComponent: 8, bytesPerRow: 4 * width,
            space: plain, bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
        else { return false }
        let whole = CGRect(x: 0, y: 0, width: width, height: height)
        context.setFillColor(red: 1, green: 1, blue: 1, alpha: 1)
        context.fill(whole)
        context.draw(image, in: whole) // which converts to sRGB
        return true
    }
    guard drawn else { throw QueryEncoderError("no bitmap of \(width) x \(height) pixels") }
    return pixels
}

private struct Taps {
    let start: Int
    let weights: [Int]

    func weigh(_ from: [UInt8], _ offset: Int, _ step: Int) -> UInt8 {
        var sum = 1 << 21
        for i in 0..<weights.count { sum += weights[i] * Int(from[offset + (start + i) * step]) }
        return UInt8(sum >> 22)
    }
}

/// For the middle `size` of `output` pixels, the input pixels that each is made of, and their weights * 2^22.
private func taps(_ input: Int, _ output: Int, _ size: Int) -> [Taps] {
    let scale = Double(input) / Double(output)
    let reach = max(scale, 1)
    let half = (output - size) >> 1
    let first = half + (half & (output - size) & 1) // a half goes to the even side
    return (0..<size).map { i in
        let centre = (Double(first + i) + 0.5) * scale
        let start = max(Int(centre - reach + 0.5), 0)
        let end = min(Int(centre + reach + 0.5), input)
        let tent = (start..<end).map { max(1 - abs((Double($0) - centre + 0.5) * (1 / reach)), 0) }
        let total = tent.reduce(0, +)
        return Taps(start: start, weights: tent.map { Int(0.5 + $0 / total * Double(1 << 22)) })
    }
}

private func pixelBuffer(_ rgb: [UInt8], _ size: Int) throws -> CVPixelBuffer {
    var made: CVPixelBuffer?
    let attributes = [kCVPixelBufferIOSurfacePropertiesKey: [:] as CFDictionary] as CFDictionary // not copied for the GPU
    CVPixelBufferCreate(nil, size, size, kCVPixelFormatType_32BGRA, attributes, &made)
    guard let buffer = made, CVPixelBufferLockBaseAddress(buffer, []) == kCVReturnSuccess else {
        throw QueryEncoderError("no pixel buffer of \(size) x \(size)")
    }
    defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
    guard let memory = CVPixelBufferGetBaseAddress(buffer) else { throw QueryEncoderError("a pixel buffer elsewhere") }
    let stride = CVPixelBufferGetBytesPerRow(buffer)
    for pixel in 0..<size * size {
        let place = pixel / size * stride + pixel % size * 4
        for channel in 0..<3 { memory.storeBytes(of: rgb[3 * pixel + 2 - channel], toByteOffset: place + channel, as: UInt8.self) }
        memory.storeBytes(of: 255, toByteOffset: place + 3, as: UInt8.self)
    }
    return buffer
}
